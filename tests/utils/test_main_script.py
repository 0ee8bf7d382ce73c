"""Scripts that spawned processes import again."""

import multiprocessing

import pytest

from cxlp.utils.main_script import imported_script


def test_an_error_in_a_loader_worker_is_reported_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")
    raised = ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback: a user's transform")
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert imported_script(ended) and not imported_script(raised)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    assert not imported_script(ended)
