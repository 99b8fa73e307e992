"""``medkd_serve``: the label maps of ``medkd_predict``, by HTTP, for many at a time; what is too much is refused."""

from __future__ import annotations

import gzip
import io
import json
import stat
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.core.geometry import Geometry
from medkd.io.volumes import read_image, read_label, write_volume
from medkd.preprocessing.pipeline import Preprocessed
from medkd.runtime.prediction import Prediction
from medkd.runtime.predictor import RuntimePredictor
from medkd.serving import upload
from tests.serving.conftest import SCAN, STUDENT, Client, Reply, form

Serve = Callable[..., Client]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, which must be empty after every answer."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if not path.name.startswith("medkd-")]


def labels(reply: Reply, folder: Path) -> np.ndarray:
    assert reply.status == 200, reply.body
    (folder / "answer.nii.gz").write_bytes(reply.body)
    return read_label(folder / "answer.nii.gz").array


def error(reply: Reply) -> str:
    text = json.loads(reply.body)["error"]
    assert text.count("\n") == 0 and text.endswith((".", "?")) and "Traceback" not in text
    return str(text)


def zipped(entries: dict[str, bytes], mode: int = 0, way: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", way) as archive:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, way
            archive.writestr(entry, content)
    return packed.getvalue()


@pytest.mark.parametrize("packing", ["gzip", "plain", "form"])
def test_a_scan_gives_the_label_map_of_the_model(
    serve: Serve, predictor: RuntimePredictor, tmp_path: Path, place: Path, packing: str
) -> None:
    call = serve(predictor)
    content = SCAN.read_bytes()
    if packing == "form":
        reply = call("/predict", *form(content))
    else:
        reply = call("/predict", gzip.decompress(content) if packing == "plain" else content)
    assert np.array_equal(labels(reply, tmp_path), read_label(STUDENT / "expected.nii.gz").array)
    assert 'filename="segmentation.nii.gz"' in reply.headers["content-disposition"]
    assert "network;dur=" in reply.headers["server-timing"]
    assert left(place) == []


def test_a_zipped_dicom_series_gives_its_label_map(
    serve: Serve, predictor: RuntimePredictor, tmp_path: Path, place: Path
) -> None:
    pytest.importorskip("pydicom")
    from tests.io.dicom_series import write_series

    image, grid = read_image([SCAN], "scan")
    low = float(image.min())
    stored = np.rint((image[0] - low) * 20).astype(int)
    step, *spacing = grid.spacing
    files = write_series(
        tmp_path / "series", stored, step=step, spacing=tuple(spacing), slope=0.05, intercept=round(low, 3)
    )
    entries = {f"study/CT/{path.name}": path.read_bytes() for path in files}
    reply = serve(predictor)("/predict?format=nifti", zipped(entries))
    stored, geometry = read_image(files, "series")
    found = labels(reply, tmp_path)
    assert np.array_equal(found, predictor.predict_case(stored, geometry, "series")) and found.any()
    assert left(place) == []
    pytest.importorskip("highdicom")
    import pydicom

    reply = serve(predictor)("/predict?format=dicom-seg", zipped(entries))
    segmentation = pydicom.dcmread(io.BytesIO(reply.body))
    assert reply.status == 200 and segmentation.Modality == "SEG"
    assert [str(part.SegmentLabel) for part in segmentation.SegmentSequence] == ["small", "large"]
    series = pydicom.dcmread(files[0]).SeriesInstanceUID
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == series
    lacking = error(serve(predictor)("/predict?format=dicom-seg", SCAN.read_bytes()))
    assert "DICOM" in lacking and str(place) not in lacking and left(place) == []


def test_ten_clients_at_once_get_their_own_label_maps(
    serve: Serve, predictor: RuntimePredictor, tmp_path: Path, place: Path
) -> None:
    """Ten scans that differ in shape and content, each asked for twice."""
    image, geometry = read_image([SCAN], "scan")
    scans, expected = [], []
    for number in range(10):
        moved = np.ascontiguousarray(np.roll(image[0], number, axis=2)[: image.shape[1] - number % 3])
        grid = Geometry.from_spacing(moved.shape, geometry.spacing)
        path = tmp_path / f"{number}.nii.gz"
        write_volume(path, moved, grid)
        scans.append(path.read_bytes())
        expected.append(predictor.predict_case(*read_image([path], "x"), "x"))
    assert len({array.tobytes() for array in expected}) == 10
    call = serve(predictor, queue=20)
    with ThreadPoolExecutor(10) as clients:
        replies = list(clients.map(lambda number: call("/predict", scans[number % 10]), range(20)))
    for number, reply in enumerate(replies):
        assert np.array_equal(labels(reply, tmp_path), expected[number % 10]), number
    counted = call("/metrics").body.decode()
    assert 'medkd_requests_total{status="200"} 20' in counted and "medkd_scans_total 20" in counted
    assert "medkd_scans_inside 0" in counted and left(place) == []


class Held:
    """A predictor that waits until it is let go."""

    def __init__(self, predictor: RuntimePredictor) -> None:
        self._predictor = predictor
        self.began, self.go, self.runs = threading.Event(), threading.Event(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def predict(self, prepared: Preprocessed, *, probabilities: bool = False) -> Prediction:
        self.runs += 1
        self.began.set()
        assert self.go.wait(30)
        return self._predictor.predict(prepared)


def test_a_full_queue_answers_503_at_once_and_goes_on(serve: Serve, predictor: RuntimePredictor) -> None:
    held = Held(predictor)
    call = serve(held, queue=1)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(call, "/predict", SCAN.read_bytes())
        assert held.began.wait(30)
        refused = call("/predict", SCAN.read_bytes())
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert error(refused) == "The server works on 1 scans, as many as it takes at a time; try again in a moment."
        assert json.loads(call("/health").body)["inside"] == 1
        held.go.set()
        assert first.result().status == 200
    assert call("/predict", SCAN.read_bytes()).status == 200


def test_the_scan_of_a_client_that_left_is_not_computed(serve: Serve, predictor: RuntimePredictor) -> None:
    import socket

    held = Held(predictor)
    call = serve(held, queue=2)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(call, "/predict", SCAN.read_bytes())
        assert held.began.wait(30)
        body = SCAN.read_bytes()
        with socket.create_connection(("127.0.0.1", call.port)) as hasty:
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            hasty.sendall(head.encode() + body)
            until(lambda: json.loads(call("/health").body)["inside"] == 2)
        until(lambda: b'status="499"' in call("/metrics").body or held.go.set() is None)
        assert first.result().status == 200
    until(lambda: json.loads(call("/health").body)["inside"] == 0)
    assert held.runs == 1


def until(holds: Callable[[], bool]) -> None:
    import time

    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to hold")


def test_a_format_of_series_for_another_file_is_said_in_words_of_requests(
    serve: Serve, predictor: RuntimePredictor
) -> None:
    for format in ("dicom-seg", "rtstruct"):
        reply = serve(predictor)(f"/predict?format={format}", SCAN.read_bytes())
        assert reply.status == 400 and "send a zip of the series" in error(reply) and "--" not in error(reply)


def test_what_is_too_large_is_413(serve: Serve, predictor: RuntimePredictor, tmp_path: Path, place: Path) -> None:
    small = serve(predictor, upload=1000)
    for body, headers in ((SCAN.read_bytes(), {}), form(SCAN.read_bytes())):
        reply = small("/predict", body, headers)
        assert reply.status == 413 and "MiB that this server takes" in error(reply)
    chunks = small("/predict", iter([b"x" * 600, b"y" * 600]))  # type: ignore[arg-type]
    assert chunks.status == 413 and "MiB that this server takes" in error(chunks)
    asks = small("/predict", iter([bytes(2**16)] * 40), {"Expect": "100-continue"})  # type: ignore[arg-type]
    assert asks.status == 413 and "MiB that this server takes" in error(asks)  # heard, though it was told to go on
    few = serve(predictor, voxels=1000)
    reply = few("/predict", SCAN.read_bytes())
    assert reply.status == 413 and "million voxels, more than the 0.001 million" in error(reply)
    coarse = np.zeros((10, 10, 9), np.float32)  # little to send, much to resample
    write_volume(tmp_path / "coarse.nii.gz", coarse, Geometry.from_spacing(coarse.shape, (50, 50, 50)))
    reply = few("/predict", (tmp_path / "coarse.nii.gz").read_bytes())
    assert reply.status == 413 and "at the network's voxel size" in error(reply)
    assert left(place) == []


BAD = {
    "nothing": (b"", "holds an empty file"),
    "text": (b"a scan, honestly", "is neither NIfTI"),
    "truncated": (SCAN.read_bytes()[:900], "scan_0000.nii.gz is truncated or damaged"),
    "no series": (zipped({"a/notes.txt": b"hello"}), "is a folder without DICOM images"),
    "no zip": (b"PK\x03\x04" + b"x" * 500, "The zip is damaged; pack the series again."),
    "climbing": (zipped({"../../evil": b"x"}), "may lie outside of the folder"),
    "link": (zipped({"a": b"/etc/passwd"}, stat.S_IFLNK | 0o777), "is a link or no plain file"),
    "bomb": (zipped({"a": b"\0" * (2 * 2**20)}), "would grow from"),
    "twins": (zipped({"a": b"1", "A": b"2"}), "twice"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_scan_is_one_sentence_without_paths(
    serve: Serve, predictor: RuntimePredictor, place: Path, kind: str
) -> None:
    body, expected = BAD[kind]
    reply = serve(predictor)("/predict", body)
    assert reply.status == 400 and expected in error(reply)
    assert str(place) not in reply.body.decode() and "medkd-" not in reply.body.decode()
    assert left(place) == []


def test_a_bomb_of_many_entries_or_bytes_is_refused(serve: Serve, predictor: RuntimePredictor) -> None:
    call = serve(predictor, entries=3, unpacked=1000)
    assert "holds 4 entries, a DICOM series at most 3" in error(call("/predict", zipped(dict.fromkeys("abcd", b""))))
    assert "would unpack to" in error(call("/predict", zipped({"a": b"x" * 600, "b": b"y" * 600})))


def test_a_gzip_that_grows_beyond_its_header_is_refused(serve: Serve, predictor: RuntimePredictor) -> None:
    swollen = gzip.compress(gzip.decompress(SCAN.read_bytes()) + b"\0" * 2**25)
    reply = serve(predictor)("/predict", swollen)
    assert reply.status == 400 and "scan_0000.nii.gz" in error(reply)


def test_forms_of_another_kind_are_one_sentence(serve: Serve, predictor: RuntimePredictor) -> None:
    call = serve(predictor)
    assert "takes 1 file(s) per scan" in error(call("/predict", *form(SCAN.read_bytes(), SCAN.read_bytes())))
    assert "but the request holds 0" in error(call("/predict", *form(SCAN.read_bytes(), name="file")))
    assert "The form cannot be read" in error(
        call("/predict", b"nonsense", {"Content-Type": "multipart/form-data; boundary=edge"})
    )
    assert "Unknown format 'nifty'. Did you mean 'nifti'?" in error(call("/predict?format=nifty", b"x"))
    assert call("/predict?format=../../x", b"x").status == 400


def test_several_channels_are_several_parts(serve: Serve, predictor: RuntimePredictor, tmp_path: Path) -> None:
    """The same network with a second channel, which it passes over."""
    exported = predictor.exported
    planned = exported.planned
    doubled = replace(
        planned,
        normalization=planned.normalization * 2,
        use_mask_for_norm=planned.use_mask_for_norm * 2,
    )
    plan = replace(
        exported.plan, intensities=exported.plan.intensities * 2, configurations={planned.name: doubled}, ranges=None
    )
    two = RuntimePredictor(
        replace(exported, plan=plan, channel_names=("a", "b")), lambda batch: predictor.engine(batch[:, :1])
    )
    reply = serve(two)("/predict", *form(SCAN.read_bytes(), SCAN.read_bytes()))
    assert np.array_equal(labels(reply, tmp_path), read_label(STUDENT / "expected.nii.gz").array)


def test_other_hosts_and_other_pages_are_refused(serve: Serve, predictor: RuntimePredictor) -> None:
    """A name of somebody else that leads to this address, and a page of somebody else in the user's browser."""
    call = serve(predictor)
    assert call("/health", headers={"Host": "evil.example"}).status == 400
    reply = call("/predict", SCAN.read_bytes(), {"Origin": "http://evil.example"})
    assert reply.status == 403 and "page of another server" in error(reply)
    own = f"127.0.0.1:{call.port}"
    assert call("/predict", SCAN.read_bytes(), {"Origin": f"http://{own}", "Host": own}).status == 200


def test_a_defect_tells_the_log_and_not_the_client(
    serve: Serve, predictor: RuntimePredictor, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Held):
        def predict(self, prepared: Preprocessed, *, probabilities: bool = False) -> Prediction:
            raise ZeroDivisionError("/secret/place")

    reply = serve(Broken(predictor))("/predict", SCAN.read_bytes())
    assert reply.status == 500 and error(reply) == "The scan could not be segmented; the server's log says why."
    assert "/secret/place" in caplog.text and left(place) == []


def test_a_slow_upload_gives_its_place_back(serve: Serve, predictor: RuntimePredictor) -> None:
    import socket

    call = serve(predictor, queue=1, seconds=0.5)
    with socket.create_connection(("127.0.0.1", call.port)) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        until(lambda: json.loads(call("/health").body)["inside"] == 1)
        until(lambda: json.loads(call("/health").body)["inside"] == 0)
    assert call("/predict", SCAN.read_bytes()).status == 200


def test_the_view_holds_what_the_page_shows(serve: Serve, predictor: RuntimePredictor, tmp_path: Path) -> None:
    import base64

    found = json.loads(serve(predictor)("/view", SCAN.read_bytes()).body)
    shown = np.frombuffer(base64.b64decode(found["labels"]), np.uint8).reshape(found["shape"])
    expected = read_label(STUDENT / "expected.nii.gz")
    assert [structure["name"] for structure in found["structures"]] == ["small", "large"]
    voxel = np.prod(expected.geometry.spacing) / 1000
    for value, structure in enumerate(found["structures"], start=1):
        assert structure["millilitres"] == pytest.approx((expected.array == value).sum() * voxel, abs=1e-3)
        assert (shown == value).sum() == (expected.array == value).sum()
    (tmp_path / "answer.nii.gz").write_bytes(base64.b64decode(found["content"]))
    assert np.array_equal(read_label(tmp_path / "answer.nii.gz").array, expected.array)


def test_the_page_needs_nothing_from_elsewhere(serve: Serve, predictor: RuntimePredictor) -> None:
    import re

    reply = serve(predictor)("/")
    assert not re.search(rb"https?://|<link|@import|src=", reply.body)
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    for path in ("/docs", "/redoc", "/openapi.json", "/../etc/passwd"):
        assert serve(predictor)(path).status == 404


def test_a_refusal_of_a_whole_upload_waits_for_nothing_more(
    serve: Serve, predictor: RuntimePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_DRAIN_SECONDS", 3600.0)  # longer than the client waits for its answer
    reply = serve(predictor)("/predict", b"no scan at all")
    assert reply.status == 400
    assert error(reply)
