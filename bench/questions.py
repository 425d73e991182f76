"""What the client of language models costs: `python -m bench.questions` asks about records.

A row for each number of requests at the same time: records and requests a second, and CPU time of a
request on our side. It asks the server of the tests, which knows its answers, in another process.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from services.endpoint import Client
from services.question_writer import QuestionWriter
from tests.llm_server import COLORS, THINGS, Server, endpoint


def _serve(told: Connection, delay: float) -> None:
    server = Server()
    server.delay = delay
    told.send(server.url)
    server.serve_forever()


@contextmanager
def _server(delay: float) -> Iterator[str]:
    """The address of a server that takes `delay` seconds to answer."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, delay), daemon=True)
    process.start()
    try:
        yield mine.recv()
    finally:
        process.terminate()
        process.join()


def measure(url: str, num_records: int, concurrency: int) -> str:
    """One row of the table."""
    captions = [
        f"a {COLORS[i % len(COLORS)]} {THINGS[i % len(THINGS)]} on a blue {THINGS[(i + 1) % 7]}"
        for i in range(num_records)
    ]
    with Client(endpoint(url, concurrency=concurrency, timeout_seconds=60.0), "bench") as client:
        writer = QuestionWriter(client, per_record=12, min_f1=0.6)
        started, cpu = time.perf_counter(), time.process_time()
        found = list(client.map(lambda item: writer.candidates(*item, []), enumerate_ids(captions)))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        requests = client.take_counts()["requests"]
    assert all(any(c.kept for c in candidates) for candidates in found)
    return (
        f"| {concurrency} | {num_records / seconds:.1f} | {requests / seconds:.0f} | "
        f"{1000 * cpu / requests:.2f} |"
    )


def enumerate_ids(captions: list[str]) -> Iterator[tuple[str, str]]:
    return ((f"r{i}", caption) for i, caption in enumerate(captions))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--delay", type=float, default=0.0, help="seconds of an answer")
    options = parser.parse_args()
    print("| at the same time | records/s | requests/s | CPU ms a request |\n|---|---|---|---|")
    with _server(options.delay) as url:
        for concurrency in options.concurrency:
            print(measure(url, options.records, concurrency), flush=True)


if __name__ == "__main__":
    main()
