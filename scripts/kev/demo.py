# SPDX-License-Identifier: GPL-2.0
"""Build the demo, run it in a guest with the patched kernel, and check its last line."""

import re
import shlex

from kev import boot, config, cross, setup, ui

LAST_LINE = re.compile(r"^kevent: events=(\d+) collect_syscalls=(\d+) lost=(\d+)$")


def program(machine):
    """Build tools/ and give the demo's program."""
    tools, options, extra = setup.toolchain(), ["--release", "--locked"], {}
    if not machine.native:
        options += ["--target", machine.rust, "-p", "kevent-demo"]
        name = machine.rust.upper().replace("-", "_")
        extra[f"CARGO_TARGET_{name}_RUSTFLAGS"] = " ".join(cross.need_rust(machine))
    ui.run([tools.rust_tool("cargo"), "build", *options], "demo: building tools/",
           config.log(machine.label("tools-build")), cwd=config.CHECKOUT / "tools",
           env=tools.cargo_environment(**extra), counts=r"^\s+Compiling", unit="crates",
           do=f"cd {config.CHECKOUT}/tools && cargo build --release")
    path = machine.rust_programs / "kevent-demo"
    if not path.exists():
        raise ui.Failure("tools/ has no demo", f"cargo did not build {path}",
                         "see tools/Cargo.toml and tools/demo")
    return path


def run(kernel, arguments=(), icount=False, limit=600):
    """Run the demo in a guest; gives the boot.Result and the numbers of the last line."""
    path = program(kernel.machine)
    result = boot.run(kernel, "demo", f"exec {shlex.join([str(path), *arguments])}\n",
                      limit, icount=icount, title="demo: boot and run",
                      state=lambda folder: (boot.read(folder / "output").splitlines() or [""])[-1])
    result.require("the demo")
    last = result.output.rstrip().split("\n")[-1]
    found = LAST_LINE.match(last)
    if not found:
        raise ui.Failure("the demo's last line is not what it should be", last,
                         f"look at {result.folder}/output", result.folder / "console")
    events, calls, lost = map(int, found.groups())
    if lost or not events:
        raise ui.Failure("the demo lost events" if lost else "the demo saw no events", last,
                         f"look at {result.folder}/output", result.folder / "console")
    return result, (events, calls, lost)


def command(args, kernel):
    result, _ = run(kernel, args.arguments, args.icount)
    ui.say()
    ui.say(result.output.rstrip())
    result.require_clean()
    return 0
