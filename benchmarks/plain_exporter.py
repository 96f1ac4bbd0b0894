"""An exporter as prometheus_client makes it, for comparison: it reads samples from stdin and serves them as Gauges.

Each line of stdin is a JSON array: a metric's name, its labels as an object, its value. The URL goes to stdout.
"""

import json
import sys
import threading

from prometheus_client import Gauge, start_http_server


def main() -> None:
    """Set the gauges, serve them on a free loopback port, and say where."""
    gauges: dict[str, Gauge] = {}
    for line in sys.stdin:
        name, labels, value = json.loads(line)
        if name not in gauges:
            gauges[name] = Gauge(name, f"The same as {name} of braze-exporter.", sorted(labels))
        (gauges[name].labels(**labels) if labels else gauges[name]).set(value)
    server, _ = start_http_server(0, addr="127.0.0.1")
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    threading.Event().wait()  # until a signal


if __name__ == "__main__":
    main()
