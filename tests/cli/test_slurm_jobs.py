"""What Slurm's queue tells of jobs, and what is left of one that is lost; the queue's answers are written here."""

import pickle
import re

import pytest
from hydra.core.utils import JobReturn, JobStatus

from cifar_lightning.cli.remote_job import NotFinished
from cifar_lightning.cli.slurm_jobs import Queue, followed_jobs
from cifar_lightning.errors import RunError


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Have ``squeue`` answer; with None it fails."""
    program, answer = tmp_path / "bin" / "squeue", tmp_path / "answer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" $SQUEUE_PARTITION > {tmp_path}/asked\nexec /bin/cat {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))

    def answers(*lines):
        if lines == (None,):
            answer.unlink()
        else:
            answer.write_text("".join(f"{line}\n" for line in lines))

    return answers


def test_a_job_is_over_when_slurm_says_so_or_has_forgotten_it(squeue):
    queue = Queue()
    for job in ("7_0", "7_1", "7_2", "8"):
        queue.register_job(job)

    def states():
        queue.get_state("8", "force")
        return [(queue.get_state(job), queue.is_done(job)) for job in ("7_0", "7_1", "7_2", "8")]

    squeue("7_0|RUNNING", "7_1|COMPLETING", "7_2|PENDING", "9|FAILED")
    first = [("RUNNING", False), ("COMPLETING", False), ("PENDING", False), ("UNKNOWN", False)]
    assert states() == first
    squeue(None)
    assert states() == first
    squeue("7_0|OUT_OF_MEMORY", "7_1|PREEMPTED", "7_2|RUNNING")
    assert states() == [("OUT_OF_MEMORY", True), ("PREEMPTED", False), ("RUNNING", False), ("UNKNOWN", False)]
    squeue("7_2|REQUEUED")
    gone = ("gone from the queue", True)
    assert states() == [("OUT_OF_MEMORY", True), gone, ("REQUEUED", False), ("UNKNOWN", False)]


def test_all_jobs_of_the_user_are_asked_for(squeue, tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "gpu")
    squeue()
    monkeypatch.setattr("os.geteuid", lambda: 1234)
    queue = Queue()
    queue.register_job("7")
    assert not queue.is_done("7")
    asked = (tmp_path / "asked").read_text()
    assert asked == "--user=1234 --states=all --all --array --noheader --format=%i|%T\n"


def test_without_slurm_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    queue = Queue()
    queue.register_job("7")
    assert (queue.get_state("7"), queue.is_done("7")) == ("UNKNOWN", False)


def test_a_lost_job_leaves_an_error_as_its_result(squeue, tmp_path, monkeypatch):
    slurm = pytest.importorskip("submitit.slurm.slurm")
    monkeypatch.setattr(slurm.SlurmJob, "_results_timeout_s", 0)
    squeue("7_0|COMPLETED", "7_1|FAILED", "7_2|COMPLETED")
    done = JobReturn(status=JobStatus.COMPLETED)
    with followed_jobs():
        jobs = [slurm.SlurmJob(folder=tmp_path / "%j", job_id=f"7_{number}") for number in range(3)]
        for job, result in ((jobs[0], ("success", done)), (jobs[2], ("error", "Traceback\n  at\nOSError: no\n"))):
            job.paths.folder.mkdir()
            job.paths.result_pickle.write_bytes(pickle.dumps(result))
        jobs[1].paths.folder.mkdir()
        jobs[1].paths.stderr.write_text("slurmstepd: killed\n")
        [returned], [lost], [failed] = (job.results() for job in jobs)
    assert returned == done
    assert lost.status == failed.status == JobStatus.FAILED
    log = tmp_path / "7_1" / "7_1_0_log.err"
    words = re.escape(f"ended without a result (Slurm: FAILED); {log} has its last words")
    with pytest.raises(NotFinished, match=f"^{words}$"):
        _ = lost.return_value
    words = re.escape(f"OSError: no; {tmp_path / '7_2' / '7_2_0_log.err'} has the whole")
    with pytest.raises(RunError, match=f"^{words}$"):
        _ = failed.return_value
