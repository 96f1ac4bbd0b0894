"""An exporter made with prometheus_client, for comparison: it serves another's exposition as Gauges.

The file named by its argument has the text format 0.0.4, label values without escapes. The URL goes to stdout.
"""

import re
import sys
import threading
from pathlib import Path

from prometheus_client import Gauge, start_http_server

_SERIES = re.compile(r"(braze_\w+)(?:\{(.*)\})? (\S+)")  # prometheus_client has those about the process itself
_LABEL = re.compile(r'(\w+)="([^"\\]*)"')


def main() -> None:
    """Set the gauges, serve them on a free loopback port, and print the address."""
    gauges: dict[str, Gauge] = {}
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        series = _SERIES.match(line)
        if series is None:
            continue
        name, labels = series[1], dict(_LABEL.findall(series[2] or ""))
        if name not in gauges:
            gauges[name] = Gauge(name, f"The same as {name} of braze-exporter.", list(labels))
        (gauges[name].labels(**labels) if labels else gauges[name]).set(float(series[3]))
    server, _ = start_http_server(0, addr="127.0.0.1")
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Event().wait()  # until a signal


if __name__ == "__main__":
    main()
