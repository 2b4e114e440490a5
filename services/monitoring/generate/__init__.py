"""Makes the Grafana dashboards and the table of metrics: ``python -m services.monitoring.generate``.

For developers; nothing of the running system imports it.
"""
