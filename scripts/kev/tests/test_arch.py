# SPDX-License-Identifier: GPL-2.0
"""Another architecture: which steps, which command lines, and what cannot be had."""

import argparse
import contextlib
import io
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from kev import __main__, arch, boot, build, config, cross, test, ui

ARM64 = arch.ARM64


def options(*steps, machine=None, long=False, debug=False):
    return argparse.Namespace(steps=list(steps), arch=machine, long=long, debug=debug, tree=None)


class StepsTest(unittest.TestCase):
    def test_plain_run_has_every_architecture(self):
        steps = test.chosen(options())
        for name in test.ARCH_STEPS:
            self.assertIn(name, steps)
            self.assertIn(f"arm64-{name}", steps)

    def test_one_architecture(self):
        self.assertEqual(test.chosen(options(machine=ARM64)),
                         [f"arm64-{name}" for name in test.ARCH_STEPS])
        self.assertEqual(test.chosen(options(machine=arch.X86_64)), list(test.ARCH_STEPS))
        self.assertEqual(test.chosen(options("demo", machine=ARM64)), ["arm64-demo"])

    def test_what_is_of_no_architecture(self):
        for wrong in (options("host", machine=ARM64), options(machine=ARM64, long=True)):
            with self.assertRaises(ui.Failure):
                test.chosen(wrong)

    def test_step_gets_its_architecture(self):
        seen = []
        step = test.on(ARM64, lambda tally, options: seen.append((options.arch, options.steps)))
        step(test.Tally(), options("x"))
        self.assertEqual(seen, [(ARM64, ["x"])])

    def test_name(self):
        self.assertIs(__main__.architecture("arm64"), ARM64)
        with self.assertRaises(argparse.ArgumentTypeError):
            __main__.architecture("sparc")

    def test_what_cannot_be_had_is_skipped(self):
        with mock.patch("kev.cross.why_not_programs", return_value="no libc"), \
                mock.patch("kev.cross.why_not_rust", return_value="no std"), \
                contextlib.redirect_stdout(io.StringIO()) as output:
            tally = test.Tally()
            for name in ("selftests", "selftests32", "demo"):
                test.STEPS[f"arm64-{name}"](tally, options())
        self.assertEqual(tally.counts(), "0 passed, 0 failed, 3 skipped")
        self.assertEqual(output.getvalue().splitlines(), [
            "  skip  64-bit programs for arm64: no libc",
            "  skip  32-bit programs for arm64: no libc",
            "  skip  the demo for arm64: no std"])


class GuestTest(unittest.TestCase):
    def command(self, **more):
        with mock.patch("kev.cross.need_guest", return_value="root.cpio"):
            return boot.command("Image", "folder", kvm=False, machine=ARM64, **more)

    def test_machine(self):
        line = " ".join(self.command())
        for part in ("qemu-system-aarch64 -machine virt", "-smp 2 ", f"-m {boot.MEMORY} ",
                     "console=ttyAMA0 ", "panic=-1 ", "numa=fake=2 ", 'KEVENT_RUN="folder"'):
            self.assertIn(part, line)
        self.assertNotIn("icount", line)

    def test_icount_has_one_processor(self):
        line = " ".join(self.command(icount=True))
        self.assertIn("-smp 1 ", line)
        self.assertIn("-icount shift=0", line)

    def test_shell_is_of_that_architecture(self):
        kernel = build.Kernel(Path("source"), Path("out"), ARM64)
        with mock.patch("kev.cross.need_guest", return_value="root.cpio"), \
                mock.patch("kev.build.Kernel.release", "7.3.4"), \
                mock.patch("subprocess.run") as run, contextlib.redirect_stdout(io.StringIO()):
            boot.shell(kernel)
        self.assertEqual(run.call_args.args[0][0], "qemu-system-aarch64")

    def test_only_its_own_folder_can_be_written(self):
        shares = [x for x in self.command() if x.startswith("local,")]
        self.assertEqual(["readonly=on" in x for x in shares], [True, False])
        self.assertIn(f"path={config.CACHE},", shares[0])
        self.assertIn("path=folder,", shares[1])

    def test_first_process_is_shell(self):
        subprocess.run(["sh", "-n"], input=cross.INIT, text=True, check=True)

    def test_timeout_of_busybox(self):
        _, _, failures = test.tap("1..1\n", "143", limit=7)
        self.assertIn("took more than 7 s", failures)


class ProgramsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=config.cache("tmp"))
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def headers(self, text):
        """build.headers() of a kernel whose <asm/unistd.h> has that text."""
        asm = self.folder / "usr/include/asm"
        asm.mkdir(parents=True)
        (asm / "unistd.h").write_text(text)
        with mock.patch("kev.ui.run") as run, \
                mock.patch("kev.build.make", lambda source, out, *args: ["make", *args]), \
                mock.patch("kev.build.environment"):
            found = build.headers(build.Kernel(self.folder, self.folder), 64, "log")
        self.assertEqual(run.call_args.args[0], ["make", "headers"])
        return found

    def test_numbers_come_from_the_tree(self):
        self.assertEqual(self.headers("".join(
            f"#define __NR_{name} 1\n" for name in build.SYSTEM_CALLS)),
            self.folder / "usr/include")

    def test_number_that_is_missing(self):
        with self.assertRaises(ui.Failure) as caught:
            self.headers("#define __NR_kevent_init 1\n#define __NR_kevent_getevents 3\n")
        self.assertEqual(caught.exception.why, "kevent_ctl")

    def test_programs_of_the_other_architecture(self):
        tools = mock.Mock(llvm=Path("/llvm"))
        with mock.patch("kev.setup.toolchain", return_value=tools):
            self.assertEqual(cross.compiler(ARM64, 32)[1], "--target=arm-linux-gnueabihf")
            self.assertIn("--sysroot", cross.rust_flags(ARM64, Path("/std")))
            self.assertNotIn("--sysroot", cross.rust_flags(ARM64))

    def test_first_reason_is_given(self):
        def fails():
            raise ui.Failure("no such thing", "it is\nnot there")

        self.assertEqual(cross.why_not(lambda: 1, fails, lambda: self.fail("went on")),
                         "no such thing: it is not there")
        self.assertEqual(cross.why_not(lambda: 1), "")

    def test_package_with_the_library_of_rustc(self):
        answers = {"-S": "rustc-web: /usr/bin/rustc\n", "-W": "1.96.0+dfsg1-1"}
        with mock.patch("kev.setup.toolchain"), \
                mock.patch("kev.ui.output", lambda command, check: answers[command[1]]):
            self.assertEqual(cross.rust_package(), "libstd-rust-web-dev=1.96.0+dfsg1-1")
            answers["-S"] = ""
            with self.assertRaises(ui.Failure):
                cross.rust_package()


class TableTest(unittest.TestCase):
    def test_every_architecture_has_its_configuration(self):
        for machine in arch.ALL.values():
            self.assertTrue(build.options(machine.config), machine.name)

    def test_the_host_is_as_it_was(self):
        self.assertEqual(arch.X86_64.label("selftests"), "selftests")
        self.assertEqual(arch.X86_64.rust_programs, config.CARGO_TARGET / "release")
        self.assertEqual(ARM64.label("selftests"), "arm64-selftests")


if __name__ == "__main__":
    unittest.main()
