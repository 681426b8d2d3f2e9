"""The commands of the tutorial, typed in a fresh environment, end with the application that it promises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.servers import free_port

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tutorial" / "web-application.md"


def test_the_tutorial_ends_with_a_working_application(tmp_path: Path) -> None:
    port, page = free_port(), PAGE.read_text("utf-8")
    # as far as it takes to install from a clone
    shutil.copytree(ROOT / "sqlspec", tmp_path / "sqlspec", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (application,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "notes.py").write_text(application)
    typed = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("8000", str(port))
    # jobs, for `kill %1`; each command on a line of its own
    script = "set -m\n" + "".join(f"{line}\necho\n" for line in typed.splitlines() if line)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250
    )
    told = done.stdout + done.stderr
    assert '{"status":"up"' in done.stdout.replace(" ", ""), told
    assert done.stdout.count('["milk"]') == 2, told
    assert "Internal Server Error" in done.stdout, told
    used = 'db_client_connection_use_time_seconds_count{db_client_connection_pool_name="notes"}'
    assert re.search(rf"^{re.escape(used)} [1-9]", done.stdout, re.MULTILINE), told
    assert done.returncode == 0, told
