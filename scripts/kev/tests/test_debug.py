# SPDX-License-Identifier: GPL-2.0
"""The debug kernel's run: a leak, or an aid that was off, is not overlooked."""

import subprocess
import tempfile
import unittest
from pathlib import Path

from kev import boot, build, config, debug

LEAK = """\
unreferenced object 0xffff888004a1b2c0 (size 192):
  comm "{comm}", pid 90, jiffies 4294700000
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 5b1f0d2a):
    __kmalloc_noprof+0x1b0/0x3f0
    {caller}+0x52/0x110
    do_syscall_64+0x5e/0x110
"""
OURS, OTHER = LEAK.format(comm="abi", caller="kevent_ctl"), LEAK.format(comm="init", caller="pipe")
LOG = "\n".join(["Linux version 7.3.4-kevent-debug ", *debug.STARTS.values()])
LOCKDEP = " lock-classes:                         1400 [max: 8192]\n" \
          " debug_locks:                             {}\n"


class DebugTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.write({"kmemleak.before": "0\n", "kmemleak.after": "0\n", "kmemleak": "",
                    "dmesg": LOG, "lockdep_stats": LOCKDEP.format(1)})

    def write(self, files):
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def test_good_run(self):
        self.assertEqual(debug.kmemleak(self.folder), [])
        self.assertEqual(debug.aids(self.folder), [])

    def test_every_unreferenced_object_is_a_failure(self):
        self.write({"kmemleak": OTHER + OURS})
        ours, other, where = debug.kmemleak(self.folder)
        self.assertIn('(size 192): comm "abi", pid 90', ours)
        self.assertIn("kevent_ctl+0x52/0x110", ours)
        self.assertIn("pipe+0x52/0x110", other)
        self.assertIn(str(self.folder), where)

    def test_report_of_another_form_is_a_failure(self):
        self.write({"kmemleak": "unreferenced percpu object 0x1 (size 8):\n"})
        self.assertEqual(len(debug.kmemleak(self.folder)), 2)
        self.write({"kmemleak": "something new\n"})
        self.assertEqual(len(debug.kmemleak(self.folder)), 2)

    def test_scan_that_did_not_happen_is_a_failure(self):
        for name in ("kmemleak.before", "kmemleak.after"):
            for status in ("1\n", ""):
                self.write({"kmemleak.before": "0\n", "kmemleak.after": "0\n", name: status})
                self.assertEqual(len(debug.kmemleak(self.folder)), 1, (name, status))

    def test_aid_that_was_off_is_a_failure(self):
        for name, text in debug.STARTS.items():
            self.write({"dmesg": LOG.replace(text, "")})
            self.assertEqual(len(debug.aids(self.folder)), 1, name)
        self.write({"dmesg": LOG, "lockdep_stats": LOCKDEP.format(0)})
        self.assertEqual(len(debug.aids(self.folder)), 1)

    def test_only_the_count_is_taken_out_of_the_log(self):
        counted = f"[    9.1] kmemleak: 2 new suspected memory leaks (see {debug.KMEMLEAK})"
        result = boot.Result(self.folder, "", 0, [counted, "BUG: KASAN: x"], "")
        self.assertEqual(debug.log_only(result).problems, ["BUG: KASAN: x"])

    def test_races_are_kevents_if_they_name_it(self):
        ours = [f"[   47.760041] BUG: KCSAN: data-race in {names}" for names in (
            "kevent_mark_watched / do_dentry_open", "vfs_read / rust_helper_fget")]
        other = ["BUG: KCSAN: data-race in eventfd_poll / eventfd_write"] * 2
        result, others = debug.races(boot.Result(
            self.folder, "", 0, ["WARNING: x of kevent", *other, *ours], ""))
        self.assertEqual(result.problems, ["WARNING: x of kevent", *ours])
        self.assertEqual(others, 2)

    def guest(self, kmemleak):
        """Run what the guest runs, with another file for kmemleak's, and no waiting."""
        text = debug.BEFORE + debug.AFTER
        self.assertIn(debug.KMEMLEAK, text)
        text = text.replace(debug.KMEMLEAK, str(kmemleak)).replace(f"sleep {debug.AGE}", "sleep 0")
        (self.folder / "mount").write_text("#!/bin/sh\n")
        (self.folder / "mount").chmod(0o755)
        done = subprocess.run(["sh", "-c", text], cwd=self.folder, capture_output=True, text=True,
                              env=config.environment(PATH=f"{self.folder}:/usr/bin:/bin"))
        return done.stdout.splitlines()

    def test_shell_text(self):
        kmemleak = self.folder / "file"
        kmemleak.touch()
        self.assertEqual(self.guest(kmemleak), ["kmemleak scan 1", "kmemleak scan 2"] * 2)
        self.assertEqual(boot.read(self.folder / "kmemleak.before"), "0\n")
        self.assertEqual(boot.read(self.folder / "kmemleak.after"), "0\n")
        self.assertEqual(boot.read(self.folder / "kmemleak"), "scan\n")

    def test_shell_text_where_kmemleak_is_off_or_missing(self):
        for kmemleak in ("/dev/full", self.folder / "no/file"):
            self.guest(kmemleak)
            self.assertIn("no scan before the tests", debug.kmemleak(self.folder)[0])
            self.assertNotEqual(boot.read(self.folder / "kmemleak.after"), "0\n")


class ConfigTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def fragment(self, name, text):
        (self.folder / name).write_text(text)
        return self.folder / name

    def test_the_last_fragment_wins(self):
        one = self.fragment("one", 'CONFIG_A=y\nCONFIG_B="x"\n# CONFIG_C is not set\n')
        two = self.fragment("two", "CONFIG_B=y\nCONFIG_C=y\n# CONFIG_A is not set\n# CONFIG_D=y\n")
        self.assertEqual(build.asked([one, two]), {"A": "n", "B": "y", "C": "y"})

    def test_debug_config_asks_for_all_aids(self):
        found = build.asked([build.TEST_CONFIG, build.KINDS["debug"]])
        for name in ("KASAN", "KASAN_VMALLOC", "PROVE_LOCKING", "PROVE_RCU", "DEBUG_ATOMIC_SLEEP",
                     "DEBUG_OBJECTS", "DEBUG_KMEMLEAK", "DETECT_HUNG_TASK", "SOFTLOCKUP_DETECTOR",
                     "RUST_DEBUG_ASSERTIONS"):
            self.assertEqual(found.get(name), "y", name)


if __name__ == "__main__":
    unittest.main()
