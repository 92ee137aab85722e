"""The built server as a child process: its own folder, database and port, started, stopped, killed and started again.

    SWIFTCHAT_BINARY           the program
    SWIFTCHAT_CLIENTS_DATABASE "sqlite" (the default) or "postgres", which needs SWIFTCHAT_TEST_POSTGRES
    SWIFTCHAT_TEST_LOGS        a folder that keeps the log of the server; not set: it goes with the data
"""

import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 20


class Server:
    def __init__(self):
        self.binary = os.environ["SWIFTCHAT_BINARY"]
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="swiftchat-nio-"))
        self.log_path = pathlib.Path(os.environ.get("SWIFTCHAT_TEST_LOGS", self.folder)) / f"{self.folder.name}.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.database_name = None
        (self.folder / "config.toml").write_text(self._configuration())

    def _configuration(self):
        database = "sqlite:swiftchat.db"
        if os.environ.get("SWIFTCHAT_CLIENTS_DATABASE", "sqlite") == "postgres":
            self.database_name = f"clients_{secrets.token_hex(6)}"
            self._sql(f"CREATE DATABASE {self.database_name}")
            database = os.environ["SWIFTCHAT_TEST_POSTGRES"].rsplit("/", 1)[0] + f"/{self.database_name}"
        return f"""
[server]
data_folder = "{self.folder}/data"
[[listeners]]
address = "127.0.0.1:{self.port}"
[storage]
database = "{database}"
[accounts]
registration = "open"
[unsafe]
cheap_password_hashing = true
rate_limits_off = true
"""

    def _sql(self, statement):
        subprocess.run(
            ["psql", "--no-psqlrc", "-qc", statement, os.environ["SWIFTCHAT_TEST_POSTGRES"]], check=True, timeout=300
        )

    def start(self):
        """Starts the server and waits until it answers."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "--config", self.folder / "config.toml"],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{self.log_path.read_text()[-4000:]}")
            time.sleep(0.02)

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.url}/_matrix/client/versions", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        """Ends the server in order, as a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS_MAX)
        assert code == 0, f"the server ended with {code}:\n{self.log_path.read_text()[-4000:]}"

    def kill(self):
        """Ends the server as a crash does: it has no time for anything."""
        self.process.kill()
        self.process.wait(STOP_SECONDS_MAX)

    def discard(self):
        """Ends the server and takes its data away."""
        if self.process and self.process.poll() is None:
            self.kill()
        if self.database_name:
            self._sql(f"DROP DATABASE {self.database_name} WITH (FORCE)")
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
