"""Private database servers for the tests: started from installed binaries, stopped by process id."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PASSWORD = "p@ss:w/rd%?#"


class ServerMissing(Exception):
    """Say which binary is not installed."""


def free_port() -> int:
    """Return a free port below the ephemeral range."""
    while True:
        port = random.randint(20000, 32000)  # noqa: S311  # not for secrets
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def find(binary: str, *folders: str) -> str:
    """Return the path of a server's binary."""
    candidates = [str(path) for folder in folders for path in sorted(Path("/").glob(folder.lstrip("/")), reverse=True)]
    found = shutil.which(binary, path=os.pathsep.join([*candidates, os.environ.get("PATH", "")]))
    if found is None:
        raise ServerMissing(f"{binary} is not installed")
    return found


class Server:
    """Start, stop, kill and freeze one server process, owned by a user that is not root."""

    user = "nobody"

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        self.folder = folder
        # a file with the server's certificate and key; the server offers no TLS without
        self.certificate = certificate
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        self._own(folder)
        if certificate is not None:
            self._own(certificate)
            certificate.chmod(0o600)
        self.initialize()

    def _as_user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups"]

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            shutil.chown(path, self.user, self.user)
            for parent in path.parents:
                if parent != Path("/tmp") and not parent.stat().st_mode & 0o001:  # noqa: S108  # where pytest works
                    parent.chmod(parent.stat().st_mode | 0o011)

    def _run(self, *command: str) -> None:
        done = subprocess.run([*self._as_user(), *command], cwd=self.folder, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr.decode()}{done.stdout.decode()}")

    def initialize(self) -> None:
        """Create the data directory."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command of the server process."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Tell whether the server answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            command = [*self._as_user(), *self.command()]
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        wait_until(self.is_ready, 30, f"{self.command()[0]}: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop the server and wait for its end."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Kill the server and its children, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop the whole server from running, without ending a connection."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._signal_all(signal.SIGCONT)

    def connections(self) -> list[int]:
        """Return the server's own ids of the connections it has, but for the one that asks."""
        raise NotImplementedError

    def activity(self) -> list[str]:
        """Return what the server tells of each of those connections."""
        raise NotImplementedError

    def end_connections(self) -> None:
        """Have the server end every connection."""
        raise NotImplementedError

    def end_connection(self, number: int) -> None:
        """Have the server end the connection with this id of its own."""
        raise NotImplementedError

    def _signal_all(self, what: int) -> None:
        if self._process is None:
            raise RuntimeError("the server is not running")
        # PostgreSQL's processes have groups of their own
        for pid in family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, the first ones first."""
    family = [pid]
    for parent in family:
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                family += map(int, children.read_text().split())
    return family


class PostgreSQLServer(Server):
    """Be a private PostgreSQL."""

    user = "postgres"

    def initialize(self) -> None:
        folders = ("/usr/lib/postgresql/*/bin",)
        self._postgres = find("postgres", *folders)
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        self._own(secret)
        data = str(self.folder / "data")
        options = ["-U", "app", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync", "-E", "UTF8"]
        self._run(find("initdb", *folders), "-D", data, *options)

    def command(self) -> list[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1,127.0.0.2",
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 200,
            "lock_timeout": "20s",
            "statement_timeout": "30s",
        }
        if self.certificate is not None:
            settings |= {"ssl": "on", "ssl_cert_file": self.certificate, "ssl_key_file": self.certificate}
        options = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        return [self._postgres, "-D", str(self.folder / "data"), *options]

    def start(self) -> None:
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        super().start()

    def is_ready(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(**self.parameters()).close()
        except psycopg2.OperationalError:
            return False
        return True

    def parameters(self) -> dict[str, object]:
        """Return what the driver needs to connect."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "app",
            "password": PASSWORD,
            "dbname": "postgres",
        }

    def _ask(self, sql: str) -> list[int]:
        return [int(row[0]) for row in self._rows(sql)]

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        import psycopg2

        connection = psycopg2.connect(**self.parameters())
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()

    _CLIENTS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"

    def connections(self) -> list[int]:
        return self._ask(f"SELECT pid {self._CLIENTS}")

    def activity(self) -> list[str]:
        told = "pid, application_name, backend_start, state_change, state, wait_event, query"
        return [str(row[0]) for row in self._rows(f"SELECT ROW({told})::text {self._CLIENTS}")]

    def end_connections(self) -> None:
        ended = set(self._ask(f"SELECT pid, pg_terminate_backend(pid) {self._CLIENTS}"))
        wait_until(lambda: ended.isdisjoint(self.connections()))

    def end_connection(self, number: int) -> None:
        self._ask(f"SELECT pg_terminate_backend({number:d})::int")


class PostgreSQLStandby(PostgreSQLServer):
    """Be a replica that follows another PostgreSQL, until it is promoted."""

    def __init__(self, folder: Path, primary: PostgreSQLServer) -> None:
        self._primary = primary
        super().__init__(folder)

    def initialize(self) -> None:
        folders = ("/usr/lib/postgresql/*/bin",)
        self._postgres = find("postgres", *folders)
        place = f"host=127.0.0.1 port={self._primary.port} user=app password='{PASSWORD}'"
        data = str(self.folder / "data")
        self._run(find("pg_basebackup", *folders), "-D", data, "-d", place, "-R", "-c", "fast", "--no-sync")

    def promote(self) -> None:
        """Make it a primary, and wait until it is one."""
        self._ask("SELECT pg_promote(true, 30)::int")


class PgBouncer(Server):
    """Be a proxy to a PostgreSQL, whose databases are called as their pooling; transactions share one connection."""

    user = "postgres"

    def __init__(self, folder: Path, behind: PostgreSQLServer) -> None:
        self._behind = behind
        super().__init__(folder)

    def initialize(self) -> None:
        self._pgbouncer = find("pgbouncer", "/usr/sbin")
        place = f"host=127.0.0.1 port={self._behind.port} dbname=postgres"
        sizes = {"session": 10, "transaction": 1, "statement": 1}
        databases = [f"{mode} = {place} pool_mode={mode} pool_size={size}" for mode, size in sizes.items()]
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self.folder / "users",
            "admin_users": "app",
            "ignore_startup_parameters": "options,extra_float_digits",
        }
        lines = ["[databases]", *databases, "[pgbouncer]", *(f"{name} = {value}" for name, value in settings.items())]
        for name, text in {"ini": "\n".join(lines), "users": f'"app" "{PASSWORD}"\n'}.items():
            (self.folder / name).write_text(text)
            self._own(self.folder / name)

    def command(self) -> list[str]:
        return [self._pgbouncer, str(self.folder / "ini")]

    def is_ready(self) -> bool:
        import psycopg2

        try:
            self.tell("SHOW VERSION")
        except psycopg2.OperationalError:
            return False
        return True

    def tell(self, command: str) -> None:
        """Run a command of its console."""
        import psycopg2

        place = {"host": "127.0.0.1", "port": self.port, "user": "app", "password": PASSWORD}
        connection = psycopg2.connect(**place, dbname="pgbouncer")
        try:
            connection.autocommit = True
            connection.cursor().execute(command)
        finally:
            connection.close()


class MariaDBServer(Server):
    """Be a private MariaDB."""

    user = "mysql"

    def initialize(self) -> None:
        data = str(self.folder / "data")
        self._mariadbd = find("mariadbd", "/usr/sbin")
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        # a server that starts removes the temporary files of others
        self._run(find("mariadb-install-db"), "--no-defaults", f"--datadir={data}", f"--tmpdir={self.folder}", *options)
        begin = self.folder / "init.sql"
        begin.write_text(
            "CREATE DATABASE IF NOT EXISTS app;\n"
            # the second by its socket
            f"CREATE USER IF NOT EXISTS app@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            f"CREATE USER IF NOT EXISTS app@localhost IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON *.* TO app@'127.0.0.1', app@localhost WITH GRANT OPTION;\n"
        )
        self._own(begin)

    def command(self) -> list[str]:
        offered = (
            [] if self.certificate is None else [f"--ssl-cert={self.certificate}", f"--ssl-key={self.certificate}"]
        )
        return [
            self._mariadbd,
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1,127.0.0.2",
            "--skip-name-resolve",
            f"--socket={self.folder / 'sock'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'init.sql'}",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=20",
            "--lock-wait-timeout=20",
            "--max-statement-time=30",
            "--max-connections=200",
            *offered,
        ]

    def stop(self, how: int = signal.SIGTERM) -> None:
        super().stop(how)

    def is_ready(self) -> bool:
        import MySQLdb

        try:
            MySQLdb.connect(**self.parameters()).close()
        except MySQLdb.OperationalError:
            return False
        return True

    def parameters(self) -> dict[str, object]:
        """Return what the driver needs to connect."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "app",
            "password": PASSWORD,
            "database": "app",
        }

    def connections(self, *, end: bool = False) -> list[int]:
        import MySQLdb

        connection = MySQLdb.connect(**self.parameters())
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'app' AND id <> CONNECTION_ID()")
            found = [int(row[0]) for row in cursor.fetchall()]
            for number in found if end else ():
                # it may have ended by itself
                with contextlib.suppress(MySQLdb.OperationalError):
                    cursor.execute(f"KILL {number}")
            return found
        finally:
            connection.close()

    def end_connections(self) -> None:
        ended = set(self.connections(end=True))
        wait_until(lambda: ended.isdisjoint(self.connections()))

    def activity(self) -> list[str]:
        import MySQLdb

        connection = MySQLdb.connect(**self.parameters())
        try:
            cursor = connection.cursor()
            cursor.execute("SHOW FULL PROCESSLIST")
            return [str(row) for row in cursor.fetchall()]
        finally:
            connection.close()

    def end_connection(self, number: int) -> None:
        import MySQLdb

        connection = MySQLdb.connect(**self.parameters())
        connection.query(f"KILL {number:d}")
        connection.close()


def wait_until(state: Callable[[], bool], seconds: float = 10, otherwise: str = "it did not happen") -> None:
    """Wait for a state, not for a time."""
    deadline = time.monotonic() + seconds
    while not state():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.01)
