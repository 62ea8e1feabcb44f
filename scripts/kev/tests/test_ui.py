# SPDX-License-Identifier: GPL-2.0
"""What scripts share is done by one of them at a time."""

import contextlib
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from kev import ui

#: Another script: it adds a line when it begins and one when it ends, as often as it is told.
OTHER = """\
import sys, time
from kev import ui
for _ in range(20):
    with ui.alone("x"), open(sys.argv[1], "a") as file:
        for line in ("begins", "ends"):
            print(line, file=file, flush=True)
            time.sleep(0.01)
"""


class Alone(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)

    def test_scripts_take_turns(self):
        path = self.top / "lines"
        environment = {**os.environ, "KEVENT_CACHE": str(self.top),
                       "PYTHONPATH": str(Path(ui.__file__).parents[1])}
        others = [subprocess.Popen([sys.executable, "-B", "-c", OTHER, path], env=environment,
                                   stdout=subprocess.DEVNULL) for _ in range(3)]
        self.assertEqual([other.wait() for other in others], [0, 0, 0])
        self.assertEqual(path.read_text().split(), ["begins", "ends"] * 60)

    def test_who_has_it_need_not_wait(self):
        with mock.patch.object(ui.config, "CACHE", self.top):
            with ui.alone("x"), ui.alone("x"):
                pass
            with contextlib.suppress(ZeroDivisionError), ui.alone("x"):
                1 / 0
            self.assertEqual(ui.ALONE, set())


if __name__ == "__main__":
    unittest.main()
