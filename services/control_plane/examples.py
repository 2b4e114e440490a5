"""Examples for every body, answer and error of the interface: a real session's, with rounded numbers."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from services.control_plane.guard import NO_TOKEN, ONLY_VIEWER, WRONG_TOKEN
from services.control_plane.problems import phrase

Json = dict[str, Any]

SPECIFICATION: Json = {
    "source": {
        "kind": "specimen",
        "specimen": {
            "structure": "cage",
            "output": "particles",
            "side_pixels": 128,
            "pixel_size_angstrom": 1.5,
            "voltage_kv": 300.0,
            "spherical_aberration_mm": 2.7,
            "amplitude_contrast": 0.07,
            "defocus_min_um": 0.8,
            "defocus_max_um": 2.2,
            "envelope_b_factor": 60.0,
            "dose_per_square_angstrom": 20.0,
            "snr": None,
            "particles_per_micrograph": 60,
            "seed": 0,
        },
    },
    "mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8, "seed": 0, "tile": None},
    "camera": {"rate": 50.0, "frames": 1000, "reference_every": 100, "reference_first": 4},
    "readout": {"values": "auto", "quantisation_sigma": 0.125, "coding": "auto"},
    "recovery": {"method": "dct", "parameters": {}, "free_share": 0.05},
    "link_mbit_per_s": 20.0,
    "output": None,
    "archive": None,
}

FIRST_ACQUISITION: Json = {
    "config_id": "ea6acb3134f13b44",
    "effective_from_frame": 0,
    "compression_factor": 2.0,
    "printed_compression_factor": 2.0,
    "error_bound": "0 (lossless)",
    "mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8, "seed": 0, "tile": None},
}

ACQUISITION: Json = {
    "config_id": "6ea660c8bb50ee8f",
    "effective_from_frame": 314,
    "compression_factor": 4.0,
    "printed_compression_factor": 4.0,
    "error_bound": "0 (lossless)",
    "mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 4, "seed": 0, "tile": None},
}

FIRST_RECOVERY: Json = {
    "method": "dct",
    "parameters": {},
    "free_share": 0.05,
    "recovery_id": "2385be6582d318cf",
    "set_at": 1795271418.0,
}

RECOVERY: Json = {
    "method": "wavelet",
    "parameters": {"iterations": 20},
    "free_share": 0.05,
    "recovery_id": "50f9129681f6dd2e",
    "set_at": 1795271435.0,
}

SESSION: Json = {
    "id": "20261121-143018-83f26e",
    "state": "running",
    "error": None,
    "created_at": "2026-11-21T14:30:18.490866Z",
    "opened_at": "2026-11-21T14:30:25.721874Z",
    "finished_at": None,
    "output": "/data/20261121-143018-83f26e",
    "shape": [128, 128],
    "dtype": "uint8",
    "pixel_size_angstrom": 1.5,
    "frames_expected": 1000,
}

METRICS: Json = {
    "session": "20261121-143018-83f26e",
    "state": "running",
    "at": 1795271437.0,
    "elapsed_seconds": 11.08,
    "frames_expected": 1000,
    "frames": {
        "acquired": 541,
        "acknowledged": 516,
        "in_flight": 25,
        "queued": 4,
        "spooled": 0,
        "lost": 0,
        "lost_by_reason": {},
    },
    "bytes": {"raw": 8863744, "wire": 3240024, "raw_lossless": 6061184},
    "throughput_gain": 2.736,
    "gain_over_lossless": 1.871,
    "frames_per_s": 50.41,
    "wire_mbit_per_s": 1.547,
    "raw_mbit_per_s": 6.607,
    "raw_frames_per_s_limit": 152.6,
    "lossless_frames_per_s_limit": 223.1,
    "newest_frame": 531,
    "newest_reference": 500,
    "idle_seconds": 0.0,
    "latency": {"p50_seconds": 0.1497, "p99_seconds": 0.5957},
    "blocks_redelivered": 0,
    "bad_files": 0,
    "recovery_seconds": 6.647,
    "quality": {
        "references": 9,
        "psnr": 19.69,
        "ssim": 0.3407,
        "lpips": None,
        "frc_resolution_angstrom": 4.186,
        "free_residual": 0.7144,
        "learned_frames": 0,
        "prior_shift": None,
    },
    "configurations": [
        {
            "config_id": "ea6acb3134f13b44",
            "mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8, "seed": 0, "tile": None},
            "compression_factor": 2.0,
            "printed_compression_factor": 2.0,
            "error_bound": "0 (lossless)",
            "first_frame": 0,
            "frames": 314,
            "quality": {
                "references": 7,
                "psnr": 19.9,
                "ssim": 0.3731,
                "lpips": None,
                "frc_resolution_angstrom": 3.0,
                "free_residual": 0.6834,
                "learned_frames": 0,
                "prior_shift": None,
            },
        },
        {
            "config_id": "6ea660c8bb50ee8f",
            "mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 4, "seed": 0, "tile": None},
            "compression_factor": 4.0,
            "printed_compression_factor": 4.0,
            "error_bound": "0 (lossless)",
            "first_frame": 314,
            "frames": 227,
            "quality": {
                "references": 2,
                "psnr": 18.96,
                "ssim": 0.2274,
                "lpips": None,
                "frc_resolution_angstrom": 8.338,
                "free_residual": 0.7573,
                "learned_frames": 0,
                "prior_shift": None,
            },
        },
    ],
    "workers": [
        {
            "name": "worker-1",
            "host": "node7",
            "pid": 4518,
            "present": True,
            "device": "cpu",
            "threads": 1,
            "busy_share": 0.6415,
            "frames_recovered": 230,
            "frames_rejected": 0,
            "frames_per_s": 21.7,
            "batch_frames_mean": 4.107,
            "evaluations": None,
            "frames_per_s_possible": None,
            "frames_per_s_asked": None,
            "credits": 2,
            "frames_held": 19,
        },
        {
            "name": "worker-2",
            "host": "node7",
            "pid": 4519,
            "present": True,
            "device": "cpu",
            "threads": 1,
            "busy_share": 0.9589,
            "frames_recovered": 286,
            "frames_rejected": 0,
            "frames_per_s": 27.09,
            "batch_frames_mean": 4.931,
            "evaluations": None,
            "frames_per_s_possible": None,
            "frames_per_s_asked": None,
            "credits": 3,
            "frames_held": 2,
        },
    ],
}

POINT: Json = {
    "number": 11,
    "at": "2026-11-21T14:30:36.264931Z",
    "state": "running",
    "config_id": "6ea660c8bb50ee8f",
    "compression_factor": 4.0,
    "frames": {
        "acquired": 541,
        "acknowledged": 516,
        "in_flight": 25,
        "queued": 4,
        "spooled": 0,
        "lost": 0,
        "lost_by_reason": {},
    },
    "bytes": {"raw": 8863744, "wire": 3240024, "raw_lossless": 6061184},
    "frames_per_s": 50.41,
    "wire_mbit_per_s": 1.547,
    "raw_mbit_per_s": 6.607,
    "throughput_gain": 2.736,
    "gain_over_lossless": 1.871,
    "latency": {"p50_seconds": 0.1497, "p99_seconds": 0.5957},
    "idle_seconds": 0.0,
    "recent_quality": {
        "references": 1,
        "psnr": 18.88,
        "ssim": 0.2247,
        "lpips": None,
        "frc_resolution_angstrom": 8.809,
        "free_residual": 0.7573,
        "learned_frames": 0,
        "prior_shift": None,
    },
    "workers_present": 2,
}

EVENTS: list[Json] = [
    {
        "number": 1,
        "at": "2026-11-21T14:30:25.722227Z",
        "component": "control",
        "name": "control",
        "kind": "started",
        "message": "session 20261121-143018-83f26e started; results go to /data/20261121-143018-83f26e",
        "details": {},
    },
    {
        "number": 2,
        "at": "2026-11-21T14:30:31.739968Z",
        "component": "control",
        "name": "control",
        "kind": "acquisition",
        "message": "C = 4 from frame 314 on",
        "details": {"config_id": "6ea660c8bb50ee8f"},
    },
    {
        "number": 3,
        "at": "2026-11-21T14:30:34.746130Z",
        "component": "control",
        "name": "control",
        "kind": "recovery",
        "message": "recovery wavelet {'iterations': 20}",
        "details": {},
    },
]

FRAME: Json = {
    "frame_id": 100,
    "config_id": "ea6acb3134f13b44",
    "compression_factor": 2.0,
    "recovery_id": "2385be6582d318cf",
    "method": "dct",
    "worker": "worker-2-f3e2d44f",
    "attempt": 1,
    "acquired_at": "2026-11-21T14:30:27.449594Z",
    "recovered_at": "2026-11-21T14:30:27.697466Z",
    "latency_seconds": 0.2479,
    "reference": True,
    "psnr": 20.16,
    "ssim": 0.3765,
    "lpips": None,
    "frc_resolution_angstrom": 3.0,
    "free_residual": 0.6781,
    "prior_shift": None,
    "posterior_spread": None,
    "evaluations": None,
    "metadata": {
        "rlnAngleRot": 118.0,
        "rlnAngleTilt": 62.94,
        "rlnAnglePsi": -66.78,
        "rlnOriginXAngst": 2.638,
        "rlnOriginYAngst": -6.18,
        "rlnDefocusU": 11690.0,
        "rlnDefocusV": 11460.0,
        "rlnDefocusAngle": 70.72,
        "rlnPhaseShift": 0.0,
        "rlnCtfBfactor": 60.0,
        "rlnCtfScalefactor": 1.0,
        "rlnOpticsGroup": 1,
        "rlnRandomSubset": 1,
    },
}

SESSION |= {
    "specification": SPECIFICATION,
    "acquisition": [FIRST_ACQUISITION, ACQUISITION],
    "recovery": [FIRST_RECOVERY, RECOVERY],
}
STARTED: Json = {**SESSION, "acquisition": [FIRST_ACQUISITION], "recovery": [FIRST_RECOVERY]}

READY: Json = {"status": "ready", "detector": True, "workers": 2, "store": "ok", "detail": ""}
NOT_READY: Json = {
    "status": "not ready",
    "detector": True,
    "workers": 0,
    "store": "ok",
    "detail": "no worker is registered",
}

STREAM = f"""event: session
data: {{"id": "{SESSION["id"]}", "state": "running", …}}

event: health
data: {{"status": "ready", "detector": true, "workers": 2, "store": "ok", "detail": ""}}

event: event
data: {{"number": 2, "kind": "acquisition", "message": "C = 4 from frame 314 on", …}}
id: {SESSION["id"]}/2/10

event: point
data: {{"number": 11, "state": "running", "compression_factor": 4.0, …}}
id: {SESSION["id"]}/2/11

event: metrics
data: {{"session": "{SESSION["id"]}", "frames_per_s": 50.41, …}}

"""

REQUESTS: dict[str, dict[str, tuple[str, Json]]] = {
    "start": {
        "defaults": ("the specimen simulator, until it is stopped", {}),
        "simulated": (
            "1000 simulated particles at 50 frames a second, over a link of 20 Mbit/s",
            {
                "source": {"kind": "specimen", "specimen": {"side_pixels": 128}},
                "mask": {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 8},
                "camera": {"frames": 1000, "rate": 50},
                "recovery": {"method": "dct"},
                "link_mbit_per_s": 20,
            },
        ),
        "micrographs": (
            "a folder that fills, through a phase plate",
            {
                "source": {"kind": "file", "path": "/data/micrographs", "watch": True},
                "mask": {"kind": "phase-plate", "pattern": "radial", "compression_factor": 2.5},
                "output": "/data/session-1",
            },
        ),
    },
    "change_acquisition": {
        "factor": ("only the factor: the nearest setting of the active kind", {"compression_factor": 4}),
        "mask": (
            "another mask",
            {"mask": {"kind": "phase-plate", "pattern": "annular", "compression_factor": 2.5}},
        ),
        "both": (
            "another mask, and the nearest of its settings",
            {"mask": {"kind": "coded-aperture", "kernel_size": 8}, "compression_factor": 4},
        ),
    },
    "change_recovery": {
        "method": ("another method, with its own defaults", {"method": "wavelet"}),
        "parameters": ("a parameter; the others stay", {"parameters": {"iterations": 20}}),
        "free share": ("no measurements kept out", {"free_share": 0}),
    },
    "sign_in": {"token": ("the operator's token, or the viewer's", {"token": "the-token-of-your-facility"})},
}
"""Bodies by operation and name, each with what it is for."""

ANSWERS: dict[tuple[str, int], Any] = {
    ("start", 201): STARTED,
    ("list_sessions", 200): [{**SESSION, "state": "completed"}],
    ("look", 200): SESSION,
    ("pause", 200): {**SESSION, "state": "paused"},
    ("resume", 200): SESSION,
    ("stop", 200): {**SESSION, "state": "stopping"},
    ("events", 200): EVENTS,
    ("stream", 200): STREAM,
    ("acquisition", 200): ACQUISITION,
    ("change_acquisition", 200): ACQUISITION,
    ("recovery", 200): {**RECOVERY, "workers": []},
    ("change_recovery", 200): {
        **RECOVERY,
        "workers": [
            {"name": "worker-1", "taken": True, "error": None},
            {"name": "worker-2", "taken": False, "error": "worker-2 did not answer within 60 s"},
        ],
    },
    ("metrics", 200): METRICS,
    ("history", 200): [POINT],
    ("frame", 200): FRAME,
    ("signed_in", 200): {"role": "viewer", "needed": True},
    ("sign_in", 200): {"role": "operator", "needed": True},
    ("healthz", 200): {"status": "alive", "version": "0.1.0"},
    ("readyz", 200): READY,
    ("readyz", 503): NOT_READY,
    ("prometheus", 200): "# HELP cryoflux_frames_acquired_total Frames exposed by the camera.\n"
    "# TYPE cryoflux_frames_acquired_total counter\ncryoflux_frames_acquired_total 541.0\n",
    ("monitoring_targets", 200): [
        {"targets": ["control:8000"], "labels": {"component": "control", "name": "control"}},
        {"targets": ["node7:9100"], "labels": {"component": "reconstructor", "name": "worker-1"}},
    ],
}
"""What is answered, by operation and status."""

GOOD: dict[str, str] = {
    "start": "the session, which acquires",
    "list_sessions": "the sessions",
    "look": "the session",
    "pause": "the session, which pauses",
    "resume": "the session, which acquires again",
    "stop": "the session, which comes to its end",
    "events": "the lines of the history",
    "acquisition": "the setting in force",
    "change_acquisition": "the new setting, and the first frame that is acquired so",
    "recovery": "the setting in force",
    "change_recovery": "the new setting, and which workers took it",
    "metrics": "the figures of now",
    "history": "the points",
    "frame": "what is known of the frame",
    "preview": "the picture: 8-bit grey",
    "signed_in": "the role, and whether a token is needed",
    "sign_in": "the token's role; a cookie is set",
    "sign_out": "the cookie is gone",
    "healthz": "it is alive",
    "readyz": "a detector and a worker are there",
    "prometheus": "Prometheus' text format",
    "monitoring_targets": "the targets",
}
"""What a good answer is, by operation."""

NOT_THERE = f"there is no session '{SESSION['id']}'"
PROBLEMS: dict[int, tuple[str, str]] = {
    401: ("", NO_TOKEN),
    403: ("", ONLY_VIEWER),
    404: ("", "there is no session yet; POST /api/v1/sessions starts one"),
    409: ("", "the session is completed; pause is possible only while it is running"),
    413: ("", "the body is larger than 1000000 bytes"),
    415: ("", "the body must be application/json, not text/plain"),
    422: ("mask.kernel_size", "must be a whole number from 1 to 64, got 65"),
    502: ("", "the camera does not answer"),
    503: ("", "the detector of this session is not heard; frames may flow all the same"),
    504: ("", "detector did not answer the command 'acquisition' within 60 s"),
}
"""The field that is wrong and why, by status."""

PROBLEMS_OF: dict[tuple[str, int], tuple[str, str]] = {
    ("sign_in", 401): ("", WRONG_TOKEN),
    ("start", 409): ("", f"session {SESSION['id']} is running; stop it first"),
    ("start", 503): ("", "no worker is registered; start one: cryoflux reconstructor"),
    ("start", 504): ("", "detector did not answer the command 'open' within 120 s"),
    ("acquisition", 409): ("", "the session is created; it has not acquired anything"),
    ("change_acquisition", 422): ("compression_factor", "17 is not possible; allowed range 1 to 16"),
    ("change_recovery", 422): ("parameters.iterations", "must be a whole number from 1 to 10000, got 0"),
    ("change_recovery", 503): ("", "no worker is registered; start one: cryoflux reconstructor"),
    ("events", 422): ("after", "must be a whole number, at least 0, got -1"),
    ("stream", 422): ("after", "must be <session>/<event number>/<point number>, got 'x'"),
    ("history", 422): ("limit", "must be a whole number from 1 to 3600, got 0"),
    ("frame", 404): ("", "frame 7 is not recovered (yet)"),
    ("frame", 422): ("frame_id", "must be a whole number, at least 0, got -1"),
    ("preview", 404): ("", "frame 7 was not sent whole, so it has no reference"),
    ("preview", 422): ("size", "must be a whole number from 16 to 4096, got 1"),
    **{
        (operation, 503): ("", "state store redis://redis:6379/0: Connection refused")
        for operation in ("list_sessions", "look", "events", "stream", "acquisition", "recovery", "metrics",
                          "history", "frame", "preview")
    },
}  # fmt: skip
"""The same where an operation has its own."""


def illustrate(document: Json) -> None:
    """Put the examples into an OpenAPI document."""
    for operations in document["paths"].values():
        for operation in operations.values():
            name = operation["operationId"]
            if body := operation.get("requestBody"):
                body["content"]["application/json"]["examples"] = {
                    key: {"summary": summary, "value": value}
                    for key, (summary, value) in REQUESTS[name].items()
                }
            for status, answer in operation["responses"].items():
                if int(status) < HTTPStatus.BAD_REQUEST:
                    answer["description"] = GOOD.get(name, answer["description"])
                for media_type, content in answer.get("content", {}).items():
                    if media_type == "application/problem+json":
                        content["example"] = _problem(name, int(status))
                    elif (name, int(status)) in ANSWERS:
                        content["example"] = ANSWERS[name, int(status)]


def _problem(operation: str, status: int) -> Json:
    field, why = PROBLEMS_OF.get((operation, status)) or PROBLEMS[status]
    return {
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "detail": f"{field}: {why}" if field else why,
        "errors": [{"field": field, "message": why}] if status == HTTPStatus.UNPROCESSABLE_ENTITY else [],
    }
