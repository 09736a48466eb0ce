"""Drives a headless Chromium over its debugging pipe (Chrome DevTools Protocol), without further packages."""

import json
import os
import select
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --hide-scrollbars --no-first-run "
    "--disable-background-networking"
)
_TIMEOUT_S = 60


def find_chromium():
    """The browser that $MEGACLASS_CHROMIUM names, else one on the path, else None."""
    return os.environ.get("MEGACLASS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a browser of its own. Messages are JSON with a NUL behind each, on descriptors 3 and 4.

    events: everything that the browser reported, as (method, params).
    """

    def __init__(self, program, profile):
        self._count, self._rest, self._session, self.events = 0, b"", None, []
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # The shell puts the pipe where the browser looks for it, whatever numbers we were given.
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        command = [program, *OPTIONS.split(), f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", *command],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """Send a command and return its result; raises on an error, and after the time limit."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def evaluate(self, expression):
        """The value of a JavaScript expression, awaited where it is a promise."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def show(self, width, height, scheme):
        """The size of the window, and whether its user likes it dark or light."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def open(self, url):
        self.send("Page.navigate", url=url)
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def close(self):
        os.close(self._to)  # which ends it
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            os.close(self._from)

    def _receive(self):
        """The next message; what it reports is kept."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], _TIMEOUT_S)
            more = os.read(self._from, 1 << 20) if ready else b""
            assert more, "the browser has ended" if ready else "the browser says nothing"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message
