# SPDX-License-Identifier: GPL-2.0
"""Boot a kernel, in virtme-ng or in QEMU, and run commands in it.

The guest shares one folder of the cache with the host, and leaves there what the
commands printed, their exit status and the kernel log; nothing is read off the
console. There is a time limit for the boot, another for the commands, and one for
commands that print nothing.
"""

import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from kev import arch, config, cross, dmesg, setup, ui

BOOT_LIMIT = 180
MEMORY = "1G"
KVM_PROBE_LIMIT = 20
#: QEMU's emulation of x86 on several threads, at least up to 8.0, can execute an instruction while
#: another CPU replaces it, as is done to static branches, and gives the kernel a breakpoint that is
#: there no more, now and then on a busy machine. No code of the kernel makes this Oops.
EMULATOR_ERRED = "Oops: int3: 0000"
TRIES = 3
SHUTDOWN_LIMIT = 60

GUEST = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root {env}
cd {folder} || exit 1
touch started
sh ./commands >output 2>&1 </dev/null
echo $? >status
echo '{marker}' >/dev/kmsg
dmesg >dmesg
touch finished
"""


@dataclass(frozen=True)
class Result:
    """What a boot gave: output and exit status of the commands, and log problems."""
    folder: Path
    output: str
    status: int | None     # None: the commands did not end
    problems: list         # of the kernel log
    why: str               # why the commands did not end

    def require(self, what):
        """Raise a Failure unless the commands ended well."""
        if self.status != 0:
            why = self.why or f"exit status {self.status}"
            last = self.output.rstrip() or (self.folder / "console").read_text(errors="replace")
            raise ui.Failure(what, f"{why}; the last lines:\n" + "\n".join(
                last.splitlines()[-15:]), f"look at {self.folder}/output and console; "
                "scripts/shell gives a guest to try in", self.folder / "console")

    def require_clean(self):
        """Raise a Failure if the kernel log has problems."""
        if self.problems:
            raise ui.Failure("the kernel log has problems", "\n".join(self.problems[:10]),
                             f"look at {self.folder}/dmesg", self.folder / "console")


def read(path):
    return path.read_text(errors="replace") if path.exists() else ""


def qemu(machine, image, folder, icount=False, memory=MEMORY):
    """QEMU's command line for another architecture; the guest runs guest.sh in the folder, or
    a shell. It has two NUMA nodes, each with half of the memory."""
    arguments = [machine.qemu.program, *machine.qemu.machine, "-smp", 1 if icount else 2,
                 "-m", memory, "-nographic", "-no-reboot", "-kernel", image,
                 "-initrd", cross.need_guest(machine),
                 "-append", f"console={machine.qemu.console} panic=-1 numa=fake=2 "
                 f'KEVENT_CACHE="{config.CACHE}" KEVENT_RUN="{folder}"'
                 + (" KEVENT_ICOUNT=1" if icount else "")]
    for name, path, options in (("cache", config.CACHE, ",readonly=on"), ("run", folder, "")):
        arguments += ["-fsdev", f"local,id={name},path={path},security_model=none"
                      f",multidevs=remap{options}",
                      "-device", f"virtio-9p-device,fsdev={name},mount_tag={name}"]
    return [str(x) for x in arguments + (["-icount", "shift=0"] if icount else [])]


def command(image, folder, kvm, icount=False, script=None, memory=MEMORY, machine=arch.X86_64,
            plugin=None, parameters=()):
    """The command line. The guest has two NUMA nodes, each with half of the memory."""
    if not machine.native:
        return qemu(machine, image, folder, icount, memory)
    options = [setup.vng(), "--run", image, "--force-9p", "--disable-microvm",
               "--append", "root=/dev/root", "--append", "panic=-1",
               "--append", "numa=fake=2", "--user", "root",
               "--cpus", 1 if icount else 2, "--memory", memory, "--rwdir", folder]
    for parameter in parameters:
        options += ["--append", parameter]
    if not kvm or icount:
        options.append("--disable-kvm")
    if icount:
        # A plugin's words go to a file beside it.
        options.append("--qemu-opts=-icount shift=0" + (
            f" -plugin {plugin} -d plugin -D {plugin}.log" if plugin else ""))
    if script:
        options += ["--verbose", "--exec", script]
    return [str(x) for x in options]


def environment():
    """vng calls its helpers through PATH."""
    return config.environment(PATH=f"{config.VENV}/bin:{os.environ['PATH']}:/usr/sbin:/sbin")


def guest_environment(icount):
    """What the programs in the guest get of the environment; KEVENT_SEED repeats random tests."""
    found = {"KEVENT_ICOUNT": "1"} if icount else {}
    if seed := os.environ.get("KEVENT_SEED"):
        found["KEVENT_SEED"] = seed
    return found


def run_once(image, name, commands, release, limit, *, kvm=False, icount=False,
             boot_limit=BOOT_LIMIT, silence=None, memory=MEMORY, title=None,
             machine=arch.X86_64, plugin=None, parameters=(), state=lambda folder: ""):
    """Boot, run the shell text `commands`, power off; gives a Result. `parameters` are for the
    kernel."""
    folder = config.CACHE / "run" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker = f"kevent-test-end-{secrets.token_hex(8)}"
    (folder / "commands").write_text(commands)
    script = folder / "guest.sh"
    script.write_text(GUEST.format(folder=folder, marker=marker, env=shlex.join(
        f"{name}={value}" for name, value in guest_environment(icount).items())))
    # A copy, because a build may replace the image while the guest loads it.
    copy = shutil.copyfile(image, folder / image.name)
    progress = ui.Progress(title or f"boot: {name}")
    with open(folder / "console", "wb") as console:
        child = subprocess.Popen(command(copy, folder, kvm, icount, f"sh {script}", memory,
                                         machine, plugin, parameters),
                                 env=environment(), stdin=subprocess.DEVNULL, stdout=console,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            why = wait(child, folder, boot_limit, limit, progress, state, silence)
        finally:
            ui.stop(child)
    copy.unlink()
    status = read(folder / "status").strip()
    status = int(status) if status else None
    log = read(folder / "dmesg") if (folder / "finished").exists() else ""
    problems = dmesg.problems(log, release, marker)
    # What the console has beyond the log is what happened after it was read, or
    # what kept it from being read.
    console = read(folder / "console")
    problems += dmesg.splats(console.split(marker)[-1] if log else console)
    if status is not None and why:
        problems.append(why)
    progress.done(why if status is None else f"exit status {status}")
    return Result(folder, read(folder / "output"), status, problems,
                  why if status is None else "")


def size(path):
    return path.stat().st_size if path.exists() else 0


def wait(child, folder, boot_limit, limit, progress, state, silence=None):
    """Wait for the phases of a boot; gives why it did not end by itself, or ''.

    `silence` is how many seconds the commands may print nothing.
    """
    for phase, mark, seconds in (("boot", "started", boot_limit), ("commands", "finished", limit),
                                 ("shutdown", None, SHUTDOWN_LIMIT)):
        start = heard = time.monotonic()
        printed = 0
        while not (mark and (folder / mark).exists()):
            if child.poll() is not None:
                if (folder / "finished").exists():
                    return ""
                return f"the guest stopped in the phase '{phase}'"
            if time.monotonic() - start > seconds:
                return f"time limit: the phase '{phase}' took more than {seconds} s"
            if phase == "commands" and silence:
                if size(folder / "output") != printed:
                    printed, heard = size(folder / "output"), time.monotonic()
                elif time.monotonic() - heard > silence:
                    return f"time limit: the commands printed nothing for {silence} s"
            progress.update(f"{phase} {state(folder)}".strip() + ",")
            time.sleep(0.2)
    return ""


def kvm_works(image, release):
    """Does a KVM guest really boot here? Asked once for each kernel and machine."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    cache = config.cache() / "kvm.json"
    qemu = setup.version_of("qemu-system-x86_64")
    key = f"{platform.node()} {platform.release()} {release} {qemu}"
    known = json.loads(read(cache) or "{}")
    if key not in known:
        result = run_once(image, "kvm-probe", "true\n", release, KVM_PROBE_LIMIT, kvm=True,
                          boot_limit=KVM_PROBE_LIMIT, title="boot: does KVM work here?")
        known[key] = result.status == 0
        cache.write_text(json.dumps(known))
        ui.say("  KVM works" if known[key] else "  it does not; using TCG (slower)")
    return known[key]


def run(kernel, name, commands, limit, **options):
    """Boot a kernel and run commands in it, with KVM where it works."""
    machine = kernel.machine
    kvm = machine.native and not options.get("icount") \
        and kvm_works(kernel.image, kernel.release)
    for last in [False] * (TRIES - 1) + [True]:
        result = run_once(kernel.image, machine.label(name), commands, kernel.release, limit,
                          kvm=kvm, machine=machine, **options)
        if last or kvm or EMULATOR_ERRED not in read(result.folder / "console"):
            return result
        ui.say("  the emulator executed an instruction that another CPU was replacing (int3): "
               "not the kernel's fault, once more")


def shell(kernel, icount=False):
    """An interactive guest; gives the exit status of vng or QEMU."""
    machine = kernel.machine
    folder = config.cache("run", machine.label("shell"))
    kvm = machine.native and not icount and kvm_works(kernel.image, kernel.release)
    ui.say(f"shell: Linux {kernel.release}, {'KVM' if kvm else 'TCG'}; files are read-only "
           f"except in\n{folder}; leave with 'exit' or Ctrl-D\nselftests: {kernel.out}/kselftest/"
           f"kevent, demo: {machine.rust_programs}/kevent-demo (made by scripts/test selftests\nand "
           "scripts/demo)" + ("; before them: export KEVENT_ICOUNT=1" if icount else ""))
    return subprocess.run(command(kernel.image, folder, kvm, icount, machine=machine),
                          env=environment(), cwd=config.CHECKOUT).returncode
