"""The whole way of a job, through the client: what users count on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultlab
import pytest

from agentd import Client, jobdir, process
from agentd.core.errors import NotNow, Refused

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A daemon of its own; at the end nothing of it is left."""
    state = str(tmp_path / "state")
    monkeypatch.setenv("AGENTD_LAB", state)
    with Client(state, owner="tester") as client:
        yield client
        client.ask("daemon.stop", kill_jobs=True)
    faultlab.until(lambda: not ours(state), what=lambda: f"left behind: {ours(state)}")


def ours(mark: str) -> list[str]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"AGENTD_LAB={mark}".encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                title = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
                if title.startswith("agentd-"):
                    found.append(title)
        except OSError:
            continue
    return found


def run(client: Client, script: str, **options: Any) -> dict[str, Any]:
    job = client.delegate(["/bin/sh", "-c", script], in_place=True, cwd="/", **options)
    return dict(client.wait([job["id"]], timeout=60)["jobs"][0])


def log(client: Client, job: dict[str, Any], stream: str = "out") -> bytes:
    path = f"{client.state_dir}/jobs/{job['id']}/{job['attempt']}"
    return b"".join(data for _, data in jobdir.read_range(path, stream, 0, 1 << 40))


def daemon_pid(client: Client) -> int:
    return int((jobdir.read(client.state_dir, "daemon.json") or {})["pid"])


# --- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "outcome", "code", "sig", "wait"),
    [
        ("exit 0", "succeeded", 0, None, 0),
        ("exit 7", "failed", 7, None, 7),
        ("kill -9 $$", "failed", None, 9, 137),
        ("kill -SEGV $$", "failed", None, 11, 139),
    ],
)
def test_every_way_to_end_is_told_exactly(
    client: Client, script: str, outcome: str, code: int | None, sig: int | None, wait: int
) -> None:
    job = run(client, script)
    assert (job["outcome"], job["exit_code"], job["signal"], job["wait_code"]) == (outcome, code, sig, wait)


def test_what_cannot_be_executed_is_unstarted_with_the_shells_code(client: Client, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for argv, code in ((["nosuch-program"], 127), ([str(plain)], 126), ([str(tmp_path)], 126)):
        job = client.wait([client.delegate(argv, in_place=True, cwd="/")["id"]])["jobs"][0]
        assert (job["outcome"], job["exit_code"], job["started_at"], job["pid"]) == ("unstarted", code, None, None)
        assert job["reason"].startswith("cannot run")


def test_a_script_without_interpreter_line_runs_as_in_a_shell(client: Client, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("exit 5\n")
    script.chmod(0o755)
    job = client.delegate([str(script)], in_place=True, cwd="/")
    assert client.wait([job["id"]])["jobs"][0]["exit_code"] == 5


# --- what a job is given ----------------------------------------------------------------------------------------


def test_a_job_gets_its_callers_environment_folder_umask_and_limits(client: Client, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "FLAVOUR": "vanilla", "GIT_DIR": "/x", "AGENTD_OWNER": "x"}
    job = client.delegate(
        ["/bin/sh", "-c", "pwd; umask; ulimit -n; env"],
        in_place=True,
        cwd=str(tmp_path),
        environment=environment,
        umask=0o027,
        limits={"RLIMIT_NOFILE": (123, 456)},
    )
    client.wait([job["id"]])
    folder, umask, files, *variables = log(client, job).decode().splitlines()
    assert (folder, umask, files) == (str(tmp_path), "0027", "123")
    names = {line.partition("=")[0] for line in variables}
    assert "FLAVOUR=vanilla" in variables
    assert names >= {"AGENTD_JOB", "AGENTD_ATTEMPT", "AGENTD_NONCE", "AGENTD_SOCKET", "AGENTD_BASE"}
    assert not names & {"GIT_DIR", "AGENTD_OWNER", "AGENTD_LAB", "AGENTD_STATE_DIR"}


def test_a_secret_reaches_the_job_and_no_file_of_ours(client: Client) -> None:
    secret = "tr0ub4dor-" + os.urandom(8).hex()
    environment = {"PATH": os.environ["PATH"], "MY_API_KEY": secret}
    job = run(client, 'test -n "$MY_API_KEY" && echo ${#MY_API_KEY}', environment=environment)
    assert log(client, job).decode().strip() == str(len(secret))
    client.ask("daemon.status")
    for folder, _, files in os.walk(client.state_dir):
        for name in files:
            if not name.endswith((".fifo", ".sock")):
                assert secret.encode() not in Path(folder, name).read_bytes(), name


def test_a_secret_of_a_queued_job_outlives_the_daemon_in_the_zygote(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = one_at_a_time(tmp_path, client, monkeypatch)
    secret = {"PATH": os.environ["PATH"], "MY_TOKEN": "abcd"}
    job = client.delegate(["/bin/sh", "-c", "echo $MY_TOKEN"], in_place=True, cwd="/", environment=secret)
    assert job["state"] == "queued"
    os.kill(daemon_pid(client), signal.SIGKILL)
    client.close()
    client.kill([blocker["id"]], signal="KILL")
    assert client.wait([job["id"]])["jobs"][0]["outcome"] == "succeeded"
    assert log(client, job) == b"abcd\n"


def test_a_job_whose_secret_died_waits_until_a_caller_gives_it(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = one_at_a_time(tmp_path, client, monkeypatch)
    secret = {"PATH": os.environ["PATH"], "MY_TOKEN": "abcd"}
    job = client.delegate(["/bin/sh", "-c", "echo $MY_TOKEN"], in_place=True, cwd="/", environment=secret)
    zygote = client.ask("daemon.status")["zygote"]
    for pid in (daemon_pid(client), zygote):
        os.kill(pid, signal.SIGKILL)
    client.close()
    waiting = client.job(job["id"])["job"]
    assert (waiting["state"], waiting["waiting"]) == ("waiting", "needs MY_TOKEN")
    with pytest.raises(Refused, match="needs MY_TOKEN"):
        client.restart(job["id"])
    monkeypatch.setenv("MY_TOKEN", "efgh")
    client.restart(job["id"])
    client.kill([blocker["id"]], signal="KILL")
    assert client.wait([job["id"]])["jobs"][0]["outcome"] == "succeeded"
    assert log(client, job) == b"efgh\n"


def one_at_a_time(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A daemon that runs one job, which is taken."""
    settings = tmp_path / "agentd.toml"
    settings.write_text("[limits]\nrunning = 1\n")
    monkeypatch.setenv("AGENTD_CONFIG", str(settings))
    blocker = client.delegate(["sleep", "1000"], in_place=True, cwd="/")
    client.wait([blocker["id"]], until="running")
    return blocker


# --- input ------------------------------------------------------------------------------------------------------


def test_without_i_a_job_reads_the_end_at_once(client: Client) -> None:
    assert run(client, "cat; echo ended")["outcome"] == "succeeded"
    with pytest.raises(Refused, match="takes no input"):
        client.send(1, "hello")


def test_input_is_queued_and_arrives_once_whatever_dies(client: Client) -> None:
    job = client.delegate(["cat"], in_place=True, cwd="/", input=True)
    client.wait([job["id"]], until="running")
    wanted = b""
    for number in range(40):
        line = f"line {number} {'x' * number * 50}\n"
        client.send(job["id"], line)
        wanted += line.encode()
        if number % 8 == 3:
            kill_keeper(client, job)
        if number % 8 == 7:
            os.kill(daemon_pid(client), signal.SIGKILL)
    client.send(job["id"], eof=True)
    done = client.wait([job["id"]], timeout=60)["jobs"][0]
    assert (done["outcome"], log(client, job)) == ("succeeded", wanted)
    with pytest.raises(Refused, match="already ended"):
        client.send(job["id"], "more")


def kill_keeper(client: Client, job: dict[str, Any]) -> None:
    title = f"agentd-keeper {job['id']}.1"
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            has_title = Path(f"/proc/{name}/cmdline").read_bytes().rstrip(b"\0") == title.encode()
            if has_title and client.state_dir.encode() in Path(f"/proc/{name}/environ").read_bytes():
                os.kill(int(name), signal.SIGKILL)
                return
        except OSError:
            continue


# --- limits -----------------------------------------------------------------------------------------------------


def test_a_time_limit_holds_while_the_daemon_is_dead(client: Client) -> None:
    job = client.delegate(["sleep", "1000"], in_place=True, cwd="/", timeout=0.5)
    client.wait([job["id"]], until="running")
    os.kill(daemon_pid(client), signal.SIGKILL)
    path = f"{client.state_dir}/jobs/{job['id']}/1"
    faultlab.until(lambda: jobdir.read(path, "end.json") is not None)
    client.close()
    done = client.wait([job["id"]])["jobs"][0]
    assert (done["outcome"], done["reason"], done["wait_code"]) == ("timed_out", "timeout", 124)


def test_an_idle_limit_counts_from_the_last_output(client: Client) -> None:
    job = run(client, "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done; sleep 1000", idle_timeout=0.6)
    assert (job["outcome"], job["reason"]) == ("timed_out", "idle_timeout")
    assert log(client, job) == b"1\n2\n3\n4\n5\n6\n"


def test_a_stopped_job_is_shown_so_and_its_clock_stands(client: Client) -> None:
    job = client.delegate(["sleep", "1000"], in_place=True, cwd="/", timeout=1.0)
    client.wait([job["id"]], until="running")
    client.kill([job["id"]], signal="STOP")
    assert client.wait([job["id"]], until="stopped", timeout=20)["jobs"][0]["state"] == "stopped"
    assert client.wait([job["id"]], timeout=1.5)["timed_out"]
    client.kill([job["id"]], signal="CONT")
    assert client.wait([job["id"]], timeout=20)["jobs"][0]["outcome"] == "timed_out"


def test_a_memory_ceiling_holds(client: Client) -> None:
    script = f"{sys.executable} -c 'b = bytearray(400 << 20)'"
    job = run(client, script, memory=200 << 20)
    assert job["outcome"] == "failed"
    assert run(client, script)["outcome"] == "succeeded"


# --- trees ------------------------------------------------------------------------------------------------------

ESCAPEE = """
import os, signal, sys
executed, held = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.execvpe("sleep", ["sleep", "1000"], {"PATH": os.environ["PATH"]})
    os._exit(0)
os.wait()
os.close(held)
os.read(executed, 1)
print("away", flush=True)
if sys.argv[1] == "stay": signal.pause()
"""


@pytest.mark.parametrize("without", ["", "cgroup"])
@pytest.mark.parametrize("way", ["stay", "leave at once"])
def test_an_escapee_is_swept_and_named(client: Client, way: str, without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTD_WITHOUT", without)
    job = client.delegate([sys.executable, "-c", ESCAPEE, way], in_place=True, cwd="/")
    if way == "stay":
        faultlab.until(lambda: log(client, job) == b"away\n")
        client.kill([job["id"]], grace=1.0)
    done = client.wait([job["id"]], timeout=30)["jobs"][0]
    assert done["outcome"] == ("killed" if way == "stay" else "succeeded")
    assert [item["command"] for item in done["swept"] if "sleep" in item["command"]] == ["sleep 1000"]
    assert not [pid for pid in (item["pid"] for item in done["swept"]) if not process.is_zombie(pid)]


def test_a_helper_that_is_to_stay_stays(client: Client) -> None:
    script = "while read x; do head -c 1000000 /dev/zero; echo $x; done"
    helper = ["/bin/sh", "-c", f"mkfifo p; exec 9<>p; setsid sh -c '{script}' <&9 & "]
    folder = Path(client.state_dir).parent
    job = client.delegate(helper, cwd=str(folder), in_place=True, leave=["sh -c while*"])
    done = client.wait([job["id"]])["jobs"][0]
    (left,) = done["left"]
    assert left["command"] == f"sh -c {script}"
    assert not process.is_zombie(left["pid"])
    # It can go on writing: somebody still reads its output.
    (folder / "p").write_text("one\ntwo\n")
    faultlab.until(lambda: log(client, job).endswith(b"two\n"))
    assert len(log(client, job)) == 2 * 1000004
    os.kill(left["pid"], signal.SIGKILL)


# --- jobs of jobs -----------------------------------------------------------------------------------------------


def test_a_job_delegates_three_deep_and_no_deeper(client: Client, tmp_path: Path) -> None:
    script = tmp_path / "nest.py"
    script.write_text(
        "import sys, os\n"
        "from agentd import Client\n"
        "from agentd.core.errors import AgentdError\n"
        "with Client() as client:\n"
        "    try:\n"
        "        job = client.delegate([sys.executable, *sys.argv], in_place=True, cwd='/')\n"
        "    except AgentdError as error:\n"
        "        print(error.exit, error.message)\n"
        "        raise SystemExit(error.exit)\n"
        "    raise SystemExit(client.wait([job['id']])['jobs'][0]['exit_code'])\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    job = client.delegate([sys.executable, str(script)], in_place=True, cwd="/", environment=environment)
    done = client.wait([job["id"]], timeout=60)["jobs"][0]
    assert done["exit_code"] == 75
    jobs = client.jobs(all=True)
    assert [(j["depth"], j["parent"], j["owner"]) for j in jobs] == [
        (1, None, "tester"),
        (2, 1, "job:1"),
        (3, 2, "job:2"),
    ]
    assert b"cannot delegate: it is 3 levels deep" in log(client, jobs[-1])


def test_a_job_finds_a_daemon_when_there_is_none(client: Client, tmp_path: Path) -> None:
    """The daemon it has started is not swept with it."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"from agentd import Client; open({str(gate)!r}).read(); print(len(Client().jobs()))"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    job = client.delegate([sys.executable, "-c", script], in_place=True, cwd="/", environment=environment)
    client.wait([job["id"]], until="running")
    os.kill(daemon_pid(client), signal.SIGKILL)
    gate.write_text("go")
    path = f"{client.state_dir}/jobs/{job['id']}/1"
    faultlab.until(lambda: jobdir.read(path, "end.json") is not None)
    assert log(client, job) == b"1\n", log(client, job, "err")
    client.close()
    with Client(client.state_dir, start=False) as later:
        assert later.wait([job["id"]])["jobs"][0]["outcome"] == "succeeded"


# --- the daemon -------------------------------------------------------------------------------------------------


def test_a_newer_version_takes_over_running_jobs(client: Client, tmp_path: Path) -> None:
    """Each newer client has the daemon hand over; twenty jobs do not notice."""
    rounds = 50 if os.environ.get("AGENTD_LONG") else 3
    script = "i=0; while [ ! -e $STOP ]; do echo $i; i=$((i+1)); sleep 0.05; done; exit 3"
    environment = {"PATH": os.environ["PATH"], "STOP": str(tmp_path / "stop")}
    jobs = [
        client.delegate(["/bin/sh", "-c", script], in_place=True, cwd="/", environment=environment) for _ in range(20)
    ]
    for job in jobs:
        client.wait([job["id"]], until="running")
    versions = set()
    for number in range(1, rounds + 1):
        copy = tmp_path / f"v{number}"
        shutil.copytree(ROOT / "agentd", copy / "agentd", ignore=shutil.ignore_patterns("__pycache__"))
        init = copy / "agentd" / "__init__.py"
        init.write_text(init.read_text().replace('__version__ = "', f'__version__ = "9.{number}.'))
        ask = "import sys, json; from agentd import Client; print(json.dumps(Client(sys.argv[1]).ask('daemon.status')))"
        answer = subprocess.run(
            [sys.executable, "-c", ask, client.state_dir],
            env={**os.environ, "PYTHONPATH": str(copy)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        status = json.loads(answer.stdout)
        versions.add(status["version"])
        assert status["jobs"]["running"] == 20
        shutil.rmtree(copy) if number < rounds else None
    assert len(versions) == rounds
    client.close()
    (tmp_path / "stop").touch()
    for job in client.wait([job["id"] for job in jobs], timeout=60)["jobs"]:
        lines = log(client, job).decode().split()
        assert (job["exit_code"], lines) == (3, [str(n) for n in range(len(lines))])


def test_stop_leaves_jobs_running_and_the_next_daemon_has_them(client: Client) -> None:
    job = client.delegate(["/bin/sh", "-c", "read x; exit 4"], in_place=True, cwd="/", input=True)
    client.wait([job["id"]], until="running")
    client.ask("daemon.stop")
    client.close()
    faultlab.until(lambda: jobdir.read(client.state_dir, "daemon.json") is None)  # answered first, ended then
    with pytest.raises(NotNow, match="no daemon is running"), Client(client.state_dir, start=False) as nobody:
        nobody.jobs()
    assert [j["state"] for j in client.jobs()] == ["running"]
    client.send(job["id"], "go\n")
    assert client.wait([job["id"]])["jobs"][0]["exit_code"] == 4


def test_only_the_owners_completions_reach_a_reader_of_mine(client: Client) -> None:
    other = Client(client.state_dir, owner="somebody")
    with other:
        for asker in (client, other, client):
            run(asker, "exit 0")
    told = [e for e in client.events(since=0, mine=True, follow=False) if e["type"] == "job.completed"]
    assert [event["job"] for event in told] == [1, 3]


# --- the start ----------------------------------------------------------------------------------------------


def test_what_nobody_was_answered_is_gone_before_the_socket_is_there(tmp_path: Path) -> None:
    """Else it could be the folder of a job that is being made at this moment."""
    state = tmp_path / "state"
    state.mkdir(0o700)
    (state / "jobs" / "7" / "1").mkdir(parents=True)
    command = [sys.executable, "-m", "agentd.daemon", str(state)]
    with subprocess.Popen(command) as daemon:
        try:
            faultlab.until(lambda: (state / "daemon.json").exists())
            assert not (state / "jobs" / "7").exists()
        finally:
            with Client(str(state)) as client:
                client.ask("daemon.stop")
            daemon.wait(30)
