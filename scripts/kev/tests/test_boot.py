# SPDX-License-Identifier: GPL-2.0
"""Booting, without a guest: the command line, and when waiting is given up."""

import contextlib
import io
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from kev import arch, boot, config, ui


class Child:
    """A guest that does not end by itself."""

    def poll(self):
        return None


class CommandTest(unittest.TestCase):
    def command(self, *args, **options):
        with mock.patch("kev.setup.vng", return_value="vng"):
            return " ".join(boot.command("bzImage", "folder", *args, **options))

    def test_two_nodes_and_memory(self):
        self.assertIn("--append numa=fake=2 ", self.command(kvm=False))
        self.assertIn(f"--memory {boot.MEMORY} ", self.command(kvm=False))
        self.assertIn("--memory 2G ", self.command(kvm=False, memory="2G"))

    def test_more_kernel_parameters(self):
        self.assertIn("--append no5lvl", self.command(kvm=False, parameters=("no5lvl",)))

    def test_seed_reaches_the_guest(self):
        with mock.patch.dict(os.environ, {"KEVENT_SEED": "7"}):
            self.assertEqual(boot.guest_environment(False), {"KEVENT_SEED": "7"})
        with mock.patch.dict(os.environ):
            os.environ.pop("KEVENT_SEED", None)
            self.assertEqual(boot.guest_environment(True), {"KEVENT_ICOUNT": "1"})


class RunTest(unittest.TestCase):
    """What a kernel's own guest does when the emulator errs."""
    def boots(self, *consoles, kvm=False):
        """How often it was booted, if the consoles have these."""
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        results = []
        for number, text in enumerate(consoles):
            place = Path(folder.name) / str(number)
            place.mkdir()
            (place / "console").write_text(text)
            results.append(boot.Result(place, "", None, [], "the guest stopped"))
        kernel = mock.Mock(machine=arch.X86_64, release="x")
        with mock.patch("kev.boot.kvm_works", return_value=kvm), \
                mock.patch("kev.boot.run_once", side_effect=results) as run, \
                contextlib.redirect_stdout(io.StringIO()):
            self.assertIs(boot.run(kernel, "name", "true", 1), results[run.call_count - 1])
        return run.call_count

    def test_only_what_the_emulator_did_is_tried_again(self):
        erred = f"[ 1.2] {boot.EMULATOR_ERRED} [#1] SMP\n"
        self.assertEqual(self.boots("Oops: 0000\n", "good"), 1)
        self.assertEqual(self.boots(erred, "good"), 2)
        self.assertEqual(self.boots(*[erred] * (boot.TRIES + 1)), boot.TRIES)
        self.assertEqual(self.boots(erred, "good", kvm=True), 1)


class WaitTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def wait(self, boot_limit=60, limit=60, state=lambda folder: "", silence=None):
        with contextlib.redirect_stdout(io.StringIO()):
            return boot.wait(Child(), self.folder, boot_limit, limit, ui.Progress("test"), state,
                             silence)

    def test_boot_that_takes_too_long(self):
        self.assertIn("phase 'boot'", self.wait(boot_limit=0.1))

    def test_commands_that_take_too_long(self):
        (self.folder / "started").touch()
        self.assertIn("phase 'commands'", self.wait(limit=0.1))

    def test_commands_that_print_nothing(self):
        (self.folder / "started").touch()
        self.assertIn("printed nothing for 0.1 s", self.wait(silence=0.1))

    def test_commands_that_print_are_waited_for(self):
        (self.folder / "started").touch()

        def state(folder):
            with open(folder / "output", "a") as output:
                output.write("x\n")
            if boot.size(folder / "output") > 10:
                (folder / "finished").touch()
            return ""

        with mock.patch("kev.boot.SHUTDOWN_LIMIT", 0):
            self.assertIn("phase 'shutdown'", self.wait(state=state, silence=0.5))


if __name__ == "__main__":
    unittest.main()
