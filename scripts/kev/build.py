# SPDX-License-Identifier: GPL-2.0
"""Configure and build the kernel, its headers and its selftests, incrementally."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

from kev import arch, config, cross, series, setup, tree, ui

TEST_CONFIG = config.SCRIPTS / "test.config"
#: Kernels of another kind, and what is merged on top for them: debug and kcsan find mistakes, and
#: are slow; inline has the locks and atomics of Rust inlined.
KINDS = {name: config.SCRIPTS / f"{name}.config" for name in ("debug", "kcsan", "inline")}
FRAGMENT = config.CHECKOUT / "Kconfig.fragment"
SELFTESTS_CONFIG = config.CHECKOUT / "selftests/config"
SELFTESTS = "tools/testing/selftests/kevent"
SYSTEM_CALLS = ("kevent_init", "kevent_ctl", "kevent_getevents")
#: With CONFIG_KCOV, what of kevent is instrumented: all; see scripts/Makefile.lib there.
#: In Rust it is blocks that are covered, not edges: to cover those, LLVM splits them, and then the
#: jump of a static branch and its entry in the jump table go to two copies of a block. If the one
#: is in reach of a short jump and the other is not, who enables the tracepoint hits a BUG.
KCOV = [*(f"KCOV_INSTRUMENT_{name}.o=y" for name in ("syscalls", "glue", "kevent")),
        "RUSTFLAGS_KCOV=-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=2 "
        "-Cllvm-args=-sanitizer-coverage-trace-pc"]
#: The harness converts every pointer that it compares to the largest integer.
SELFTESTS_CFLAGS = {64: ["-m64"], 32: ["-m32", "-Wno-pointer-to-int-cast"]}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that was built."""
    source: Path
    out: Path
    machine: arch.Arch = arch.X86_64

    @property
    def image(self):
        return self.out / self.machine.image

    @property
    def release(self):
        return (self.out / "include/config/kernel.release").read_text().strip()


def make(source, out, *args):
    """The make command for the kernel, every tool named explicitly."""
    tools = setup.toolchain()
    cc = f"{tools.llvm}/clang"
    if ccache := shutil.which("ccache"):
        cc = f"{ccache} {cc}"
    return ["make", "-C", source, f"O={out}", f"-j{config.jobs()}", f"LLVM={tools.llvm}/",
            f"CC={cc}", f"RUSTC={tools.rustc}", f"RUSTFMT={tools.rust_tool('rustfmt')}",
            f"RUSTDOC={tools.rust_tool('rustdoc')}", f"BINDGEN={tools.bindgen}",
            f"CLIPPY_DRIVER={tools.rust_tool('clippy-driver')}",
            f"RUST_LIB_SRC={tools.rust_src}", "LOCALVERSION=", "KBUILD_BUILD_USER=kevent",
            "KBUILD_BUILD_HOST=kevent",
            "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 2026", *args]


def environment():
    return config.environment(LIBCLANG_PATH=setup.toolchain().libclang)


def options(path):
    """{option: value} that a configuration or a fragment asks for ("n" if not set)."""
    text = path.read_text()
    found = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.M))
    found.update({name: "n" for name in re.findall(r"^# CONFIG_(\w+) is not set", text, re.M)})
    return found


def asked(fragments):
    """{option: value} that the fragments ask for together; the last one wins, as in merging."""
    return {name: value for fragment in fragments for name, value in options(fragment).items()}


def configure(source, out, fragments, machine=arch.X86_64):
    """tinyconfig plus the fragments; every option asked for must really be set."""
    log, env = config.log(machine.label("configure")), environment()
    fix = "see the log; scripts/test setup checks the tool chain"
    command = make(source, out, *machine.make)
    ui.run([*command, "rustavailable"], "build: make rustavailable", log, env=env, do=fix)
    ui.run([*command, "tinyconfig"], "build: tinyconfig", log, env=env, append=True)
    ui.run([source / "scripts/kconfig/merge_config.sh", "-m", "-O", out,
            out / ".config", *fragments], "build: merging the options", log, env=env,
           cwd=source, append=True)
    ui.run([*command, "olddefconfig"], "build: olddefconfig", log, env=env, append=True)
    real = options(out / ".config")
    wrong = [f"CONFIG_{name}={value}" for name, value in asked(fragments).items()
             if real.get(name, "n") != value]
    if wrong:
        raise ui.Failure("options did not take effect", ", ".join(wrong),
                         f"add what they depend on to scripts/{fragments[0].name} "
                         f"(make menuconfig in {out} shows it)", log)


def command_and_settings(source, out, fragments, machine):
    """The command that builds the kernel, and a digest of all but the source that it is made of."""
    command = make(source, out, *machine.make, *KCOV, Kernel(source, out, machine).image.name)
    return command, hashlib.sha256(json.dumps([
        [f.read_text() for f in fragments], command, setup.toolchain().versions,
    ], default=str).encode()).hexdigest()


def kernel(source, out, fragments, name="build", machine=arch.X86_64):
    """Build the kernel in `source`, only what changed; gives the Kernel."""
    built, stamp = Kernel(source, out, machine), out / ".kevent-stamp"
    command, settings = command_and_settings(source, out, fragments, machine)
    with ui.alone(out.name):
        out.mkdir(parents=True, exist_ok=True)
        key = {"settings": settings, "commit": tree.git(source, "rev-parse", "HEAD").strip()}
        old = json.loads(stamp.read_text()) if stamp.exists() else {}
        if old == key and built.image.exists():
            ui.say(f"{name}: {built.release} is up to date")
            return built
        stamp.unlink(missing_ok=True)
        configure(source, out, fragments, machine)
        log = config.log(name)
        ui.run(command, f"{name}: the kernel", log, env=environment(),
               counts=r"^  [A-Z][A-Z0-9_. ]+ ", unit="steps",
               do=f"see the log; to try again by hand:\ncd {source} && "
                  f"{shlex.join(map(str, command))}")
        stamp.write_text(json.dumps(key))
        return built


def out_folder(base, name="test"):
    """One output folder for each base and tool chain; make sees to the rest."""
    key = hashlib.sha256(repr(setup.toolchain().versions).encode()).hexdigest()[:8]
    return config.cache("build") / f"{base.repo.name}-{name}-{key}"


def fragments(machine, *others):
    """What the configuration of a kernel for that architecture is made of."""
    return [TEST_CONFIG, machine.config, *others]


def patched_source(user_tree=None):
    """The base, and the source with the series applied to it."""
    base = tree.get(user_tree, series.applies)
    return base, base.checkout(series.applied(base))


def patched(user_tree=None, kind="", machine=arch.X86_64):
    """The kernel with the series, built; or one of KINDS."""
    setup.toolchain()
    base, source = patched_source(user_tree)
    return kernel(source, out_folder(base, machine.label(kind or "test")),
                  fragments(machine, *([KINDS[kind]] if kind else []), FRAGMENT, SELFTESTS_CONFIG),
                  machine.label(f"build-{kind}" if kind else "build"), machine)


def headers(kernel, bits, log):
    """The folder of the kernel's headers for programs of so many bits.

    It must have the numbers of the system calls; the programs would do with their own.
    """
    out, machine = kernel.out, kernel.machine
    compiler, variables = ["gcc", SELFTESTS_CFLAGS[bits][0]], ()
    if not machine.native:
        compiler = cross.compiler(machine, bits)
        variables = (f"ARCH={machine.programs[bits].headers}",)
    if variables != machine.make:
        # 32-bit programs are of another architecture, as the kernel has it.
        out = kernel.out / f"headers{bits}"
        out.mkdir(exist_ok=True)
    ui.run(make(kernel.source, out, *variables, "headers"), "selftests: headers", log,
           env=environment())
    found = ui.output([*compiler, "-E", "-dM", "-isystem", out / "usr/include", "-x", "c",
                       "-include", "asm/unistd.h", "/dev/null"])
    missing = [name for name in SYSTEM_CALLS if f"#define __NR_{name} " not in found]
    if missing:
        raise ui.Failure(f"the kernel's headers for {bits}-bit programs lack system calls",
                         ", ".join(missing), "see the tables that the patches change", log)
    return out / "usr/include"


def selftests(kernel, bits=64):
    """Build the selftests of the patched tree, as programs of so many bits; gives them."""
    folder = kernel.source / SELFTESTS
    if not (folder / "Makefile").exists():
        raise ui.Failure("the patched tree has no selftests", f"no {SELFTESTS}/Makefile",
                         "scripts/series check")
    machine, log = kernel.machine, config.log(kernel.machine.label("selftests-build"))
    out = kernel.out / "kselftest" / ("kevent" if bits == 64 else f"kevent{bits}")
    include = headers(kernel, bits, log)
    out.mkdir(parents=True, exist_ok=True)
    command = ["make", "-C", folder, f"OUTPUT={out}", f"-j{config.jobs()}",
               f"KHDR_INCLUDES=-isystem {include}"]
    if machine.native:
        command.append(f"USERCFLAGS={' '.join(SELFTESTS_CFLAGS[bits])}")
    else:
        command += [f"CC={shlex.join(map(str, cross.compiler(machine, bits)))}",
                    "USERLDFLAGS=-static"]
    ui.run(command, f"selftests: building, {bits} bits", log, append=True)
    listing = ui.output([*command, "-s", "--no-print-directory",
                         "--eval=kevent-list: ; @echo $(TEST_GEN_PROGS) $(TEST_PROGS)",
                         "kevent-list"])
    return [Path(p) if p.startswith("/") else folder / p for p in listing.split()]


@contextlib.contextmanager
def other_commits(base):
    """A worktree for any commit, for one script at a time, and the fragment that has Rust but not
    kevent."""
    with ui.alone("each"):
        source, off = config.cache("each") / base.repo.name, config.cache("each") / "off.config"
        if not (source / ".git").exists():
            tree.git(base.repo, "worktree", "prune")
            tree.git(base.repo, "worktree", "add", "-q", "-f", "--detach", source, base.commit)
        off.write_text("CONFIG_RUST=y\n# CONFIG_KEVENT is not set\n")
        yield source, off
