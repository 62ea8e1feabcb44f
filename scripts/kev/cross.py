# SPDX-License-Identifier: GPL-2.0
"""What the programs and the guests of another architecture need.

Programs are made with clang and linked statically, with the C library of Debian's
cross packages and Rust's library of that architecture. The guest is QEMU's; it has
busybox and those programs. Packages of that architecture are never installed: what
is in them is kept in the cache.
"""

import functools
import hashlib
import shutil

from kev import config, setup, tree, ui

#: The guest's first process. The variables are from the kernel's command line.
INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /dev /proc /sys /tmp /run /root
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
ip link set lo up
mkdir -p "$KEVENT_CACHE"
mount -t 9p -o trans=virtio,version=9p2000.L,ro cache "$KEVENT_CACHE" &&
mount -t 9p -o trans=virtio,version=9p2000.L run "$KEVENT_RUN" &&
if [ -e "$KEVENT_RUN/guest.sh" ]; then
	sh "$KEVENT_RUN/guest.sh"
else
	cd "$KEVENT_RUN"
	HOME=/root setsid cttyhack sh
fi
poweroff -f
"""


def why_not(*steps):
    """The reason of the first step that fails; '' if none does."""
    try:
        for step in steps:
            step()
    except ui.Failure as failure:
        return failure.line()
    return ""


# ---- Debian's packages of that architecture ----------------------------------

@functools.cache
def apt(machine):
    """apt for that architecture, with the system's mirrors, whose lists it has read."""
    if not tree.Apt.usable():
        raise ui.Failure(f"no packages for {machine.debian}", "this is no Debian system",
                         "use Debian, or leave --arch out")
    found = tree.Apt(machine.name, None, machine.debian)
    # Lists of somebody else's, which the keyring is not for, are not needed.
    found.update()
    return found


def unpack(machine, package, top):
    """Have a package of that architecture ("name" or "name=version") unpacked in `top`."""
    stamp, wanted = top / ".package", f"{package}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    folder = apt(machine).download(package)
    new = tree.fresh(folder / "unpacked")
    ui.run(["dpkg-deb", "-x", next(folder.glob("*.deb")), new],
           f"{machine.name}: unpacking it", apt(machine).log, append=True)
    (new / ".package").write_text(wanted)
    tree.put(new, top)
    shutil.rmtree(folder)


# ---- programs ----------------------------------------------------------------

def compiler(machine, bits=64):
    """clang for programs of so many bits."""
    return [setup.toolchain().llvm / "clang", f"--target={machine.programs[bits].triple}",
            "-fuse-ld=lld"]


def links_c(machine, bits):
    return setup.links([*compiler(machine, bits), "-static", "-pthread", "-x", "c", "-"],
                       setup.HELLO)


@functools.cache
def need_c(machine, bits):
    """Make sure that C programs of so many bits can be made."""
    if not links_c(machine, bits):
        names = [x.format(setup.number(setup.version_of("gcc"))[0])
                 for x in machine.programs[bits].packages]
        setup.require(lambda: links_c(machine, bits), names,
                      f"C library for {machine.programs[bits].triple}")


def rust_flags(machine, sysroot=None):
    """What rustc needs to make static programs; the library is in `sysroot`, if not its own."""
    clang, *arguments = compiler(machine)
    flags = [f"-Clinker={clang}", *(f"-Clink-arg={x}" for x in arguments),
             "-Ctarget-feature=+crt-static"]
    return [*flags, "--sysroot", str(sysroot)] if sysroot else flags


def links_rust(machine, sysroot):
    return setup.links([setup.toolchain().rustc, "--target", machine.rust,
                        *rust_flags(machine, sysroot), "-"], "fn main() {}\n")


def rust_package():
    """Debian's package with the library that belongs to rustc, and its version."""
    rustc = setup.toolchain().rustc
    owner = ui.output(["dpkg-query", "-S", rustc], check=False).split(":")[0]
    version = owner and ui.output(["dpkg-query", "-W", "-f", "${Version}", owner], check=False)
    if not version or not owner.startswith("rustc"):
        raise ui.Failure("no Rust library to go with rustc", f"{rustc} is of no Debian package",
                         "use Debian's: RUSTC=/usr/bin/rustc")
    return f"libstd-{owner.replace('rustc', 'rust', 1)}-dev={version}"


@functools.cache
@ui.alone("set-up")
def need_rust(machine):
    """rustc's flags for programs of that architecture."""
    need_c(machine, 64)
    top = config.CACHE / machine.name / "rust"
    for sysroot in (None, top / "usr"):
        if links_rust(machine, sysroot):
            return rust_flags(machine, sysroot)
    package = rust_package()
    unpack(machine, package, top)
    if not links_rust(machine, top / "usr"):
        raise ui.Failure(f"no Rust library for {machine.rust}",
                         f"that of {package} does not go with {setup.toolchain().rustc}",
                         "use Debian's: RUSTC=/usr/bin/rustc")
    return rust_flags(machine, top / "usr")


# ---- the guest ---------------------------------------------------------------

@functools.cache
@ui.alone("set-up")
def need_guest(machine):
    """QEMU, and the guest's initial file system, which is given."""
    setup.require(lambda: shutil.which(machine.qemu.program), [machine.qemu.package],
                  machine.qemu.program)
    folder = config.cache(machine.name)
    unpack(machine, "busybox-static", folder / "busybox")
    image = folder / f"root-{hashlib.sha256(INIT.encode()).hexdigest()[:8]}.cpio"
    if not image.exists():
        root = tree.fresh(config.cache("tmp") / "root")
        (root / "bin").mkdir()
        shutil.copy(folder / "busybox/bin/busybox", root / "bin")
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        ui.run(["sh", "-c", 'find . | cpio -o -H newc -R 0:0 >"$1.new" && mv "$1.new" "$1"',
                "sh", image], f"{machine.name}: initial file system",
               config.log(f"{machine.name}-root"), cwd=root)
        shutil.rmtree(root)
    return image


@functools.cache
def why_not_programs(machine, bits):
    """Why programs of so many bits cannot be made and run here; '' if they can."""
    return why_not(lambda: need_guest(machine), lambda: need_c(machine, bits))


@functools.cache
def why_not_rust(machine):
    return why_not(lambda: need_guest(machine), lambda: need_rust(machine))


def everything(machine):
    """Set up all that can be had, and say what cannot."""
    rows = [("C", why_not(lambda: need_c(machine, 64))),
            ("32-bit C", why_not(lambda: need_c(machine, 32))),
            ("Rust", why_not(lambda: need_rust(machine))),
            ("guest", why_not(lambda: need_guest(machine)))]
    for name, why in rows:
        ui.say(f"  {machine.name + ' ' + name:21} {why or 'works'}")
