"""What is seen in MLflow while a stage runs: its training curves and the load of its machine.

Needs the id of a run and MLFLOW_TRACKING_URI only, so that a stage may run in any process. Work
never waits for MLflow: a thread does the talking, and what it cannot say is filled in later from
the finished artifact.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core.config import Tracking
from core.progress import values_observed_by
from tracking.connection import connect
from tracking.metric_log import MetricLog, curve_points

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

FLUSH_SECONDS = 3.0
SAMPLE_SECONDS = 5.0  # between two measurements of the machine
CLOSE_SECONDS = 10.0  # how long a finished stage waits for its last points


@contextmanager
def shown_live(tracking: Tracking, run_id: str, *, machine: bool = True) -> Iterator[None]:
    """Show what runs inside on an MLflow run; does nothing without one or without a server.

    `machine`: its load too.
    """
    if not tracking.enabled or not run_id:
        yield
        return
    stream = _Stream(tracking, run_id, machine)
    try:
        with values_observed_by(stream.add):
            yield
    finally:
        stream.close()


class _Stream:
    """Collects rows of figures; a thread sends them every few seconds.

    Nothing is opened for stages that are over before the first sending, as cached ones are.
    """

    def __init__(self, tracking: Tracking, run_id: str, machine: bool) -> None:
        self._tracking, self._run_id, self._machine = tracking, run_id, machine
        self._waiting: deque[dict[str, float]] = deque()  # appending and popping need no lock
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="mlflow-live", daemon=True)
        self._thread.start()

    def add(self, row: Mapping[str, float]) -> None:
        """Take a row with its `step`."""
        self._waiting.append(dict(row))

    def close(self) -> None:
        """Send what is left."""
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)

    def _send_all(self) -> None:
        over = self._closed.wait(FLUSH_SECONDS)
        if over and not self._waiting:
            return
        connection = connect(self._tracking, warn=False)
        points = MetricLog(connection, self._run_id, {})
        points.refresh()
        watched = self._machine and connection.open and not over
        monitor = _monitor(connection.uri, self._run_id) if watched else None
        while True:
            over = over or self._closed.wait(FLUSH_SECONDS)
            rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if rows and connection.open:
                points.log_new(curve_points(rows))
            if over:
                break
        if monitor is not None:
            monitor.finish()


def _monitor(uri: str, run_id: str) -> SystemMetricsMonitor:
    """MLflow's own watch over processors, memory, disks, network and graphics cards, started."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # It says what the training says anyway: that the server is gone.
    logging.getLogger(SystemMetricsMonitor.__module__).setLevel(logging.ERROR)
    monitor = SystemMetricsMonitor(
        run_id, sampling_interval=SAMPLE_SECONDS, resume_logging=True, tracking_uri=uri
    )
    monitor.start()
    return monitor
