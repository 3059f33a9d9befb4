"""A store that goes away for a minute: nothing that a run reads or writes there is lost, and no thread ends with it."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import aiohttp
import pytest
import requests
from aiohttp.http_exceptions import BadStatusLine, ContentLengthError
from botocore.exceptions import ClientError, EndpointConnectionError
from fsspec.implementations.http import HTTPFileSystem
from s3fs.errors import translate_boto_error

from cluster import object_store
from cluster.context import LocalContext
from cluster.object_store import StoreAway, open_files
from cluster.stop_file import StopFile, StopWatch, stopping_on_signals
from cluster.storage import CheckpointFolder
from pipelines.terminal.atomic_files import whole_lines, write_whole
from pipelines.tracking.outbox import Message, Outbox
from preprocessing.store import file_system
from tests.support.away_files import AwayFileSystem, away_files, leave
from tests.support.http_server import http_server
from tests.support.servers import free_ports
from tests.support.waiting import wait_for
from tuning.ledger import Ledger, TrialRecord


@pytest.fixture(autouse=True)
def _store() -> Iterator[None]:
    with away_files():
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only sleeping moves, so that an outage of a minute takes no time."""
    now = [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])
        sleep = staticmethod(lambda seconds: now.__setitem__(0, now[0] + seconds))

    monkeypatch.setattr(object_store, "time", Clock)
    monkeypatch.setattr(file_system, "time", Clock)
    monkeypatch.setattr(AwayFileSystem, "clock", staticmethod(Clock.monotonic))
    return now


def test_reads_and_writes_wait_for_a_minute(clock: list[float], tmp_path: Path) -> None:
    files, root = open_files("away://bucket/run")
    (tmp_path / "part").write_bytes(b"local")
    files.pipe_file(f"{root}/here", b"1")
    requests = {
        "cat_file": lambda: files.cat_file(f"{root}/here"),
        "pipe_file": lambda: files.pipe_file(f"{root}/there", b"2"),
        "put_file": lambda: files.put_file(str(tmp_path / "part"), f"{root}/part"),
        "get_file": lambda: files.get_file(f"{root}/part", str(tmp_path / "copy")),
        "exists": lambda: files.exists(f"{root}/here"),
        "ls": lambda: files.ls(root, detail=False),
        "rm_file": lambda: files.rm_file(f"{root}/there"),
    }
    answers = {}
    for name, request in requests.items():
        leave(60)
        began = clock[0]
        answers[name] = request()
        assert 60 <= clock[0] - began < 70, name
    assert answers["cat_file"] == b"1" and answers["exists"] is True and len(answers["ls"]) == 3
    assert (tmp_path / "copy").read_bytes() == b"local" and not files.exists(f"{root}/there")


def test_a_removal_whose_answer_was_lost_is_done(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    files, root = open_files("away://bucket/run")
    files.pipe_file(f"{root}/x", b"1")
    remove = files.plain.rm_file

    def cut(path: str) -> None:
        remove(path)
        raise EndpointConnectionError(endpoint_url="http://store:9000")

    monkeypatch.setattr(files.plain, "rm_file", cut)
    files.rm_file(f"{root}/x")
    monkeypatch.undo()
    assert not files.exists(f"{root}/x")
    with pytest.raises(FileNotFoundError):
        open_files("away://bucket/run")[0].rm_file(f"{root}/x")


def test_a_store_that_stays_away_is_an_oserror_that_names_it(clock: list[float]) -> None:
    files, root = open_files("away://bucket/run")
    leave(10**6)
    began = clock[0]
    with pytest.raises(StoreAway, match=r"bucket/run/x cannot be reached .*http://store:9000.*check the address"):
        files.cat_file(f"{root}/x")
    assert clock[0] - began < 3  # it has never answered: an address may be mistyped
    leave(0)
    assert not files.exists(f"{root}/x")
    leave(10**6)
    began = clock[0]
    with pytest.raises(OSError, match=r"it was waited for 2\d\d s"):
        files.exists(f"{root}/x")
    assert object_store.OUTAGE_S - 10 < clock[0] - began <= object_store.OUTAGE_S


def test_what_the_store_answers_and_mistakes_of_ours_come_at_once(clock: list[float], tmp_path: Path) -> None:
    files, root = open_files("away://bucket/run")
    files.pipe_file(f"{root}/here", b"1")
    for error, request in (
        (FileNotFoundError, lambda: files.cat_file(f"{root}/none")),
        (FileNotFoundError, lambda: files.put_file(str(tmp_path / "none"), f"{root}/x")),
        (TypeError, lambda: files.cat_file(f"{root}/here", start="a")),
    ):
        with pytest.raises(error):
            request()
    assert clock[0] == 1000.0
    assert pickle.loads(pickle.dumps(files)).exists(f"{root}/here")
    assert type(open_files(str(tmp_path))[0]).__name__ == "LocalFileSystem"


def test_checkpoints_metrics_and_ledger_are_written_when_it_is_back(clock: list[float]) -> None:
    def write(folder: Path) -> None:
        leave(60)
        (folder / "state").write_text("trained")

    folder = CheckpointFolder("away://bucket/run/checkpoints")
    folder.save(1, write, LocalContext("cpu"), {}, 1)
    folder.save(2, write, LocalContext("cpu"), {}, 1)
    assert [checkpoint.step for checkpoint in folder.all()] == [2]
    leave(60)
    write_whole("away://bucket/run/metrics.jsonl", '{"step": 1}\n')
    leave(60)
    assert list(whole_lines("away://bucket/run/metrics.jsonl")) == [{"step": 1}]
    ledger = Ledger.load("away://bucket/sweep", open_files)
    leave(60)
    ledger.put(TrialRecord(number=3, point=0, seed=0, parameters={}))
    assert list(Ledger.load("away://bucket/sweep", open_files).trials) == [3]


def test_the_watch_for_stop_outlives_an_outage() -> None:
    file = StopFile("away://bucket/run")
    file.clear()
    watch = StopWatch(file)  # it looks once a second
    leave(1.5)
    wait_for(lambda: AwayFileSystem.refused > 0)
    file.ask("maintenance")
    wait_for(lambda: watch.reason == "maintenance")
    watch.close()


def test_a_sigterm_during_an_outage_is_passed_on_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "OUTAGE_S", 0.3)  # even of one that is longer than a single write waits
    file = StopFile("away://bucket/run")
    file.clear()
    leave(1.0)
    with stopping_on_signals(file):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: AwayFileSystem.clock() > AwayFileSystem.back_at and file.reason() == "SIGTERM")


def test_metrics_are_queued_on_while_server_and_store_are_both_away() -> None:
    sent: list[Message] = []

    def deliver(messages: list[Message]) -> None:
        if AwayFileSystem.clock() < AwayFileSystem.back_at:
            raise ConnectionError("the tracking server does not answer")
        sent.extend(messages)

    outbox = Outbox(deliver, kept="away://bucket/run/undelivered.jsonl", retry_s=0.05)
    leave(0.5)
    for number in range(3):
        outbox.put({"number": number})
    wait_for(lambda: AwayFileSystem.refused > 0)  # while the file of undelivered ones is written
    wait_for(lambda: len(sent) == 3)
    assert outbox.close() == 0 and [message["number"] for message in sent] == [0, 1, 2]


@pytest.mark.parametrize("module", [object_store, file_system])
def test_what_the_store_refuses_is_said_at_once(module: ModuleType, clock: list[float]) -> None:
    """Codes that s3fs does not know come as an error of input and output, which an outage would be too."""

    def refused(code: str, status: int) -> OSError:
        answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        return translate_boto_error(ClientError(answer, "PutObject"))

    for code, status in (("QuotaExceeded", 403), ("AccessDenied", 403), ("AuthorizationHeaderMalformed", 400)):
        with pytest.raises(PermissionError, match=r"away://x is refused by its store .*no.*check the bucket"):
            one_request(module, refused(code, status))
    for error in (refused("NoSuchKey", 404), FileNotFoundError(2, "gone", "x"), PermissionError(13, "shut", "/disk")):
        with pytest.raises(type(error)) as raised:
            one_request(module, error)
        assert raised.value is error
    assert one_request(module, refused("OperationAborted", 409)) == b"answered"
    for code, status in (("Unheard", 500), ("SlowDown", 503), ("RequestTimeout", 400), ("Throttling", 400)):
        assert one_request(module, refused(code, status)) == b"answered"


def of_gcs(status: int) -> Exception:
    retry = pytest.importorskip("gcsfs.retry", reason="needs the extra gcs")
    with pytest.raises(Exception) as raised:
        retry.validate_response(status, json.dumps({"error": {"message": "no", "code": status}}), "bucket/x")
    return raised.value


def of_hub(status: int) -> Exception:
    utils = pytest.importorskip("huggingface_hub.utils", reason="needs the extra hub")
    httpx2 = pytest.importorskip("httpx2")
    with pytest.raises(utils.HfHubHTTPError) as raised:
        utils.hf_raise_for_status(httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/a")))
    return raised.value


def of_requests(status: int) -> Exception:
    answer = requests.Response()  # false where it failed
    answer.status_code = status
    return requests.HTTPError("no", response=answer)


def of_aiohttp(status: int) -> Exception:
    return aiohttp.ClientResponseError(Mock(), (), status=status, message="no")


@pytest.mark.parametrize("module", [object_store, file_system])
@pytest.mark.parametrize("failed", [of_gcs, of_hub, of_requests, of_aiohttp])
def test_other_stores_refuse_in_words_of_their_own(
    module: ModuleType, failed: Callable[[int], Exception], clock: list[float]
) -> None:
    for status in (400, 401, 403):
        with pytest.raises(PermissionError, match=r"away://x is refused by its store .*check the bucket"):
            one_request(module, failed(status))
    for status in (408, 429, 500, 503):
        assert one_request(module, failed(status)) == b"answered"


@pytest.mark.parametrize("module", [object_store, file_system])
def test_an_error_whose_code_is_no_status_is_an_outage(module: ModuleType, clock: list[float]) -> None:
    for code in (None, "AccessDenied", len, 14, True):
        error = OSError("cut")
        error.code = code  # type: ignore[attr-defined]
        assert one_request(module, error) == b"answered"


class Refusing(BaseHTTPRequestHandler):
    """Answers 404 to requests for what is called missing, and 501 to all others."""

    def do_HEAD(self) -> None:
        self.send_error(404 if self.path.endswith("missing") else 501)

    do_GET = do_HEAD


@pytest.mark.parametrize("opened", [object_store.open_files, file_system.file_system_of])
def test_a_web_server_that_does_not_answer_is_away(opened: Callable, clock: list[float]) -> None:
    """fsspec says that the file is not there."""
    HTTPFileSystem.clear_instance_cache()  # one object serves all servers, and remembers that one has answered
    with http_server(Refusing) as address:
        addresses = f"{address}/store", f"http://127.0.0.1:{free_ports(1)[0]}/store"
        for url, reason in zip(addresses, ("501", "Connect call failed"), strict=True):
            files, path = opened(url)
            with pytest.raises(ConnectionError, match=rf"{url} cannot be reached .*{reason}.*check the address"):
                files.exists(path)
        files, path = opened(f"{address}/missing")
        assert not files.exists(path)


@pytest.mark.parametrize("module", [object_store, file_system])
def test_an_answer_that_breaks_off_is_an_outage(module: ModuleType, clock: list[float]) -> None:
    """aiohttp gives what it cannot read status 400, as if the server had said so."""
    for cause in (ContentLengthError("cut"), BadStatusLine("garbled")):
        payload, status = aiohttp.ClientPayloadError("not completed"), of_aiohttp(400)
        for error in (payload, status):
            error.__cause__ = cause
        wrapped = OSError("s3fs")
        wrapped.__cause__ = status
        for error in (cause, payload, status, wrapped):
            assert one_request(module, error) == b"answered"


def one_request(module: ModuleType, error: Exception) -> bytes:
    """A read whose first request fails with the error, and whose second is answered."""
    errors = [error]

    class Store:
        has_answered = True

        def unstrip_protocol(self, path: str) -> str:
            return f"away://{path}"

        def cat_file(self, path: str, **_: object) -> bytes:
            if errors:
                raise errors.pop()
            return b"answered"

    kind = module.RetryingFiles if module is object_store else module.RetryingFileSystem
    return kind(Store()).cat_file("x")
