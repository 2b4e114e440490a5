# One image for every CryoFlux process: control plane, detector, reconstructors and the client that starts a
# session. Which of them a container is, its command says ("control", "detector", "reconstructor", "start ...").
#
#   docker build -t cryoflux:0.1.0 .                                   recoveries on the CPU
#   docker build -t cryoflux:0.1.0-cuda --build-arg TORCH_INDEX= .     on NVIDIA GPUs (and on the CPU)
#
# Layers are ordered by how seldom they change: user, torch with the other libraries, our own code. A change of
# code builds in seconds and ships two megabytes.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# ---- what is needed besides our own code: pip installs a project's dependencies only together with the project,
# ---- which would tie the libraries' layer to every line of it
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /build
COPY pyproject.toml ./
RUN python -c "import tomllib; \
p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['tracing'], sep='\n')" > requirements.txt

# ---- the libraries, in an environment of their own that holds no installer
FROM ${PYTHON_IMAGE} AS libraries
# Where the torch wheel is looked for besides the usual index. The default has builds without CUDA. An empty value
# takes what the usual index has: on x86-64 the CUDA build, 3 GB more. Another CUDA version: .../whl/cu126
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/cryoflux
WORKDIR /build
COPY constraints.txt ./
# Headers and test programs of torch are of no use here, and are 150 MB.
RUN pip --python /opt/cryoflux/bin/python install --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} torch \
 && rm -r /opt/cryoflux/lib/python3.11/site-packages/torch/include \
          /opt/cryoflux/lib/python3.11/site-packages/torch/test
COPY --from=requirements /build/requirements.txt ./
RUN pip --python /opt/cryoflux/bin/python install --constraint constraints.txt --requirement requirements.txt \
 && pip --python /opt/cryoflux/bin/python check

# ---- our code
FROM libraries AS code
COPY pyproject.toml LICENSE README.md ./
COPY common common
COPY detector_sim detector_sim
COPY reconstructor reconstructor
COPY services services
RUN pip --python /opt/cryoflux/bin/python install --no-deps --prefix /opt/code .

# ---- what runs
FROM ${PYTHON_IMAGE}
# What containers write in mounted folders belongs to this user: give your own numbers to write into yours.
ARG CRYOFLUX_UID=10001
ARG CRYOFLUX_GID=10001
# A volume takes over owner and mode of the folder that it is first mounted on.
RUN groupadd --non-unique --gid "${CRYOFLUX_GID}" cryoflux \
 && useradd --non-unique --uid "${CRYOFLUX_UID}" --gid cryoflux --home-dir /tmp --no-create-home \
            --shell /usr/sbin/nologin cryoflux \
 && install --directory --owner cryoflux --group cryoflux /results /state /spool /keys \
 && install --directory /data
COPY --from=libraries /opt/cryoflux /opt/cryoflux
COPY --from=code /opt/code /opt/cryoflux
# Compiled loops are kept where any user may write, for the code itself may not be written.
ENV PATH=/opt/cryoflux/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    CRYOFLUX_RESULTS=/results \
    CRYOFLUX_SPOOL=/spool \
    CRYOFLUX_STATE=/state/cryoflux.sqlite
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="CryoFlux" \
      org.opencontainers.image.description="Live compressive cryo-EM acquisition" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER ${CRYOFLUX_UID}:${CRYOFLUX_GID}
WORKDIR /results
STOPSIGNAL SIGTERM
ENTRYPOINT ["cryoflux"]
CMD ["--help"]
