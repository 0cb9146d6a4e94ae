"""Network streams and cameras in: HTTP and RTSP servers of this test's own on the loopback, and a drawn camera."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.video import open as video_open
from basnet_runtime.media.video.camera import CameraSource
from basnet_runtime.media.video.options import Span, VideoOptions
from basnet_runtime.media.video.reader import VideoSource
from basnet_runtime.media.video.write.passthrough import NoPassthrough
from basnet_runtime.media.video.write.sink import OutputPlan, VideoSink
from basnet_runtime.pipeline.run import Pipeline
from basnet_torch.errors import MediaError, UsageError

KIND = OutputKind()


def images(count):
    return [np.full((48, 64, 3), 40 + 4 * i, np.uint8) for i in range(count)]


def convert(model, source, target, **options):
    with source:
        plan = OutputPlan(
            target=target,
            info=source.info,
            kind=KIND,
            options=VideoOptions(hwaccel="none"),
            passthrough=lambda: source.passthrough,
            whole=lambda: source.whole,
        )
        sink = VideoSink(plan, **options)
        report = Pipeline(model, Composer(KIND)).run(source, sink)
    return report, source.warnings + sink.warnings


def frames_and_sound(path):
    with av.open(str(path)) as container:
        frames = [frame.time for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = sum(packet.size > 0 for packet in container.demux(audio=0)) if container.streams.audio else 0
    return frames, sound


@pytest.fixture
def http_address(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **more):
            super().__init__(*args, directory=str(tmp_path), **more)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_http_gives_what_the_file_gives(tmp_path, write_video, fake_model, http_address):
    clip = write_video(tmp_path / "in.mkv", images(12), time_base=Fraction(1, 1000), pts=list(range(0, 480, 40)))
    write_video(tmp_path / "sound.ts", images(12), audio="aac")
    report, warnings = convert(fake_model, VideoSource(f"{http_address}/{clip.name}"), tmp_path / "out.mp4")
    assert (report.frames, warnings) == (12, [])
    convert(fake_model, VideoSource(f"{http_address}/sound.ts"), tmp_path / "sound.mp4")
    frames, sound = frames_and_sound(tmp_path / "sound.mp4")
    assert len(frames) == 12
    # Without a length it counts as endless: its times begin with the first picture, and sound before that is left out.
    assert 20 < sound <= frames_and_sound(tmp_path / "sound.ts")[1] <= sound + 2
    assert frames[0] == 0


def test_what_does_not_answer_is_one_line(http_address):
    with pytest.raises(MediaError, match="cannot be read as video: server returned 404 Not Found"):
        VideoSource(f"{http_address}/nothing.mp4")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        begun = time.monotonic()
        with pytest.raises(MediaError, match="there is no answer for 1 seconds"):
            video_open.open_input(address, timeouts=(1.0, 1.0))
        assert time.monotonic() - begun < 5


class RtspServer:
    """Just enough of RFC 2326 for one client over TCP: FFmpeg's own RTP packets of a clip, interleaved."""

    def __init__(self, clip, *, hold=False):
        """`hold`: go silent after the last packet instead of hanging up."""
        self._clip, self._hold = clip, hold
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(20)
        self.address = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/front"
        self._thread = threading.Thread(target=self._serve)
        self._done = threading.Event()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._server.close()
        self._thread.join()

    def _serve(self):
        client, _ = self._server.accept()
        with client, client.makefile("rb") as requests:
            while True:
                line = requests.readline().split()
                if not line:
                    return
                headers = {}
                while text := requests.readline().strip():
                    name, _, value = text.partition(b":")
                    headers[name.lower()] = value.strip()
                body, more = b"", b""
                if line[0] == b"DESCRIBE":
                    body = self._description()
                    more = b"Content-Type: application/sdp\r\nContent-Length: %d\r\n" % len(body)
                elif line[0] == b"SETUP":
                    more = b"Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                elif line[0] == b"PLAY":
                    more = b"Session: 1\r\n"
                client.sendall(b"RTSP/1.0 200 OK\r\nCSeq: " + headers[b"cseq"] + b"\r\n" + more + b"\r\n" + body)
                if line[0] == b"PLAY":
                    for packet in self._packets():
                        client.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)
                        time.sleep(0.03)  # a camera's pace
                    if self._hold:
                        self._done.wait(20)
                    return

    def _description(self):
        return b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"

    def _packets(self):
        """MPEG-TS in RTP, payload type 33: a header of twelve bytes and seven TS packets."""
        data = self._clip.read_bytes()
        for number, at in enumerate(range(0, len(data), 1316)):
            header = b"\x80\x21" + number.to_bytes(2, "big") + (number * 3000).to_bytes(4, "big") + b"\x00\x00\x00\x01"
            yield header + data[at : at + 1316]


def test_rtsp_is_read_until_it_ends(tmp_path, write_video, fake_model):
    clip = write_video(tmp_path / "in.ts", images(40), audio="aac")
    with RtspServer(clip) as server:
        source = VideoSource(server.address)
        report, warnings = convert(fake_model, source, tmp_path / "out.mp4")
    frames, sound = frames_and_sound(tmp_path / "out.mp4")
    assert len(frames) == report.frames
    assert 30 <= report.frames <= 40
    assert frames[0] == 0
    assert sound > 20
    assert all("frames came faster" in text or "the stream ended" in text for text in warnings)


def test_rtsp_that_goes_silent_ends_in_time(tmp_path, write_video, fake_model, monkeypatch):
    monkeypatch.setattr(video_open.open_input, "__kwdefaults__", {"hwaccel": None, "timeouts": (5.0, 1.0)})
    clip = write_video(tmp_path / "in.ts", images(40))
    with RtspServer(clip, hold=True) as server:
        begun = time.monotonic()
        report, warnings = convert(fake_model, VideoSource(server.address), tmp_path / "out.mp4")
        assert time.monotonic() - begun < 15
    assert report.frames > 20
    assert "the stream ended: nothing came for 10 seconds" in warnings


class DrawnCamera:
    """What OpenCV gives for a camera; it stops after some pictures, and is faster than anyone."""

    def __init__(self, count):
        self.left, self.released = count, False

    def get(self, _):
        return 30.0

    def read(self):
        if not self.left:
            return False, None
        self.left -= 1
        time.sleep(0.005)
        return True, np.full((48, 64, 3), (10, 20, 200), np.uint8)

    def release(self):
        self.released = True


def test_a_camera_is_read_until_it_stops(tmp_path, fake_model):
    camera = DrawnCamera(20)
    source = CameraSource(0, open_camera=lambda _: camera)
    assert isinstance(source.passthrough, NoPassthrough)
    report, warnings = convert(fake_model, source, tmp_path / "out.mp4")
    assert camera.released
    assert 1 <= report.frames <= 19
    assert "the camera stopped giving pictures" in warnings
    frames, _ = frames_and_sound(tmp_path / "out.mp4")
    assert frames == sorted(set(frames))
    assert frames[0] == 0
    assert len(frames) == report.frames


def test_a_camera_ends_where_it_is_asked_to(fake_model, tmp_path):
    source = CameraSource(0, span=Span.parse(None, "5f"), open_camera=lambda _: DrawnCamera(10_000))
    report, _ = convert(fake_model, source, tmp_path / "out.mp4")
    assert report.frames == 5


def test_a_slow_network_drops_frames_and_says_so(make_model, tmp_path):
    class Slow(type(make_model().backend)):
        def infer(self, batch):
            time.sleep(0.03)
            return super().infer(batch)

    model = make_model()
    model.backend = Slow(64, 64)
    source = CameraSource(0, open_camera=lambda _: DrawnCamera(100))
    report, warnings = convert(model, source, tmp_path / "out.mp4")
    assert report.frames < 60
    assert any("frames came faster than they could be done and were left out" in text for text in warnings)


def test_what_a_camera_has_not(tmp_path):
    with pytest.raises(UsageError, match="a camera starts now; --end says for how long"):
        CameraSource(0, span=Span.parse("1", None), open_camera=lambda _: DrawnCamera(1))
    with pytest.raises(MediaError, match="camera:99: there is no such camera, it is in use, or it gives no picture"):
        CameraSource(99)


def command(*words):
    code = "from basnet_runtime.command.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True, text=True)


def test_the_command_says_what_is_wrong_with_a_stream(tmp_path):
    done = command("camera:99", "-o", str(tmp_path / "out.mp4"), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["failures"][0]["source"] == "camera:99"
    done = command("rtsp://127.0.0.1:1/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: rtsp://127.0.0.1:1/x: a camera or network stream is run alone, into a file: -o FILE\n"
    )


def test_ctrl_c_is_how_a_camera_ends(tmp_path, fake_model):
    def interrupt(item):
        if item.frame.index == 6:
            raise KeyboardInterrupt

    source = CameraSource(0, open_camera=lambda _: DrawnCamera(10_000))
    plan = OutputPlan(target=tmp_path / "out.mp4", info=source.info, kind=KIND, passthrough=NoPassthrough)
    sink = VideoSink(plan, endless=True)
    with source, pytest.raises(KeyboardInterrupt):
        Pipeline(fake_model, Composer(KIND), on_frame=interrupt).run(source, sink)
    assert sink.kept == tmp_path / "out.mp4"
    assert len(frames_and_sound(sink.kept)[0]) == 7
