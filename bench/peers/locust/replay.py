"""A locustfile: every client asks one recorded question again and again; run by bench/load.py.

    locust -f replay.py --headless --users N --spawn-rate N --run-time 60s --host URL --question FILE --answers FILE

FILE of the question is JSON: path, headers, body as hex, reply_bytes. FILE of the answers becomes JSON: a list of
[second, milliseconds, what], where the second is of the machine's monotonic clock and "what" is a status with its code,
"empty" for a reply that is not as long as the recorded one, or "unreachable". A client that is told to come back later
does, as one would.
"""

import json
import time
from pathlib import Path

import gevent
from locust import FastHttpUser, events, task

ANSWERS = []


@events.init_command_line_parser.add_listener
def add_options(parser):
    parser.add_argument("--question", required=True)
    parser.add_argument("--answers", required=True)


@events.quitting.add_listener
def write_answers(environment, **_others):
    Path(environment.parsed_options.answers).write_text(json.dumps(ANSWERS))


class Caller(FastHttpUser):
    """One client."""

    connection_timeout = 10
    network_timeout = 60

    def on_start(self):
        """Read the question."""
        question = json.loads(Path(self.environment.parsed_options.question).read_text())
        self.path, self.headers, self.reply_bytes = question["path"], question["headers"], question["reply_bytes"]
        self.body = bytes.fromhex(question["body"])

    @task
    def ask(self):
        """Ask it, note the answer, and wait if that was to come back later."""
        begin = time.monotonic()
        with self.client.post(self.path, data=self.body, headers=self.headers, catch_response=True) as response:
            what, pause = self.judge(response)
            response.success()  # what it was is judged by whoever reads the answers
        ANSWERS.append([begin, 1e3 * (time.monotonic() - begin), what])
        if pause:
            gevent.sleep(pause)

    def judge(self, response):
        """Return what an answer was, and how long to wait before the next question."""
        if not response.status_code:
            return "unreachable", 0.2
        if response.status_code == 200:
            return ("200" if len(response.content) == self.reply_bytes else "empty"), 0
        try:
            code = response.json()["code"]
        except (ValueError, KeyError, TypeError):
            code = "unknown"
        later = response.headers.get("retry-after")
        return f"{response.status_code} {code}{'' if later else ' without Retry-After'}", float(later or 0.2)
