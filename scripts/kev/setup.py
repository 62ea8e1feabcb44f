# SPDX-License-Identifier: GPL-2.0
"""Set-up: distribution packages, the tool chain, bindgen and virtme-ng."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kev import config, ui

#: What each kind of work needs: (package, a command it brings or None). Where
#: there is no dpkg, only the commands are checked.
PACKAGES = {
    "tree": [("git", "git"), ("xz-utils", "xz"), ("ca-certificates", None), ("perl", "perl")],
    "build": [("make", "make"), ("gcc", "gcc"), ("libc6-dev", None), ("flex", "flex"),
              ("bison", "bison"), ("bc", "bc"), ("libelf-dev", None), ("libssl-dev", None),
              ("openssl", "openssl"), ("kmod", "depmod"), ("cpio", "cpio"),
              ("pahole", "pahole"), ("rsync", "rsync"), ("ccache", "ccache")],
    "boot": [("qemu-system-x86", "qemu-system-x86_64"), ("python3-venv", None),
             ("busybox-static", "busybox"), ("iproute2", "ip")],
    "lint": [("sparse", "sparse")],
    "library": [("g++", "g++"), ("mandoc", "mandoc")],
}
RUST_PACKAGES = ["rustc-web", "rust-web-src", "rustfmt-web", "rust-web-clippy", "cargo-web"]
LLVM_PACKAGES = ["clang-{0}", "lld-{0}", "llvm-{0}", "libclang-{0}-dev"]
LLVM_VERSIONS = range(22, 16, -1)
#: For 32-bit programs; {0} is gcc's version. Not gcc-multilib: it conflicts with every
#: cross compiler, so installing it could remove some.
PACKAGES_32 = ["libc6-dev-i386", "lib32gcc-{0}-dev"]
LOADER_32 = Path("/lib/ld-linux.so.2")


@dataclass(frozen=True)
class Toolchain:
    """The programs a build uses, each named explicitly."""
    llvm: Path         # folder with clang, ld.lld, llvm-ar, ...
    libclang: Path     # folder with libclang.so
    rustc: Path
    rust_src: Path     # the library sources that match rustc
    bindgen: Path
    versions: tuple    # of (tool, version)

    def rust_tool(self, name):
        """cargo, rustfmt, ...: the one beside rustc, else the one on PATH."""
        beside = self.rustc.parent / name
        return str(beside if beside.exists() else shutil.which(name) or beside)

    def cargo_environment(self, **extra):
        return config.environment(RUSTC=self.rustc, RUSTFMT=self.rust_tool("rustfmt"),
                                  RUSTDOC=self.rust_tool("rustdoc"),
                                  LIBCLANG_PATH=self.libclang, **extra)


def version_of(command, option="--version"):
    """The first x.y.z that the command, with arguments or without, prints with the option; None
    if it does not run."""
    command = command if isinstance(command, list) else [command]
    try:
        done = subprocess.run([*map(str, command), option], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout)
    return found.group() if found and done.returncode == 0 else None


def number(version):
    return tuple(int(x) for x in re.findall(r"\d+", version or "0")[:3])


def new_enough(version, tool):
    return number(version) >= number(config.PINS["minimum"][tool])


def installed(package):
    done = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", package],
                          capture_output=True, text=True)
    return done.returncode == 0 and done.stdout == "installed"


@ui.alone("set-up")
def install(packages):
    """Install distribution packages, as root or through sudo."""
    missing = [p for p in packages if not installed(p)]
    if not missing:
        return
    by_hand = "sudo apt-get install --no-install-recommends " + " ".join(missing)
    sudo = []
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            raise ui.Failure("packages are missing", ", ".join(missing), by_hand)
        sudo = ["sudo"]
    log = config.log("apt")
    # env(1), because sudo does not pass the environment on.
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    env = dict(os.environ)
    ui.run([*apt, "update"], "set-up: package lists", log, env=env, check=False)
    ui.run([*apt, "install", "-y", "--no-install-recommends", *missing],
           f"set-up: installing {len(missing)} packages", log, env=env, append=True,
           do=by_hand, counts=r"^Setting up", unit="set up")


@functools.cache
def packages(kind):
    """Make sure that the packages for one kind of work are there."""
    if shutil.which("dpkg-query") and shutil.which("apt-get"):
        return install([package for package, _ in PACKAGES[kind]])
    missing = [command for _, command in PACKAGES[kind] if command and not shutil.which(command)]
    if missing:
        raise ui.Failure("programs are missing", ", ".join(missing),
                         "install them with your distribution's package manager")


#: The smallest C program.
HELLO = "#include <stdio.h>\nint main(void) { return !puts(\"\"); }\n"


@ui.alone("set-up")
def links(command, text):
    """Does this command, which reads its standard input, make a program of the text?"""
    program = config.cache("tmp") / "links"
    done = subprocess.run([*map(str, command), "-o", program], input=text, text=True,
                          capture_output=True, env=config.environment())
    program.unlink(missing_ok=True)
    return done.returncode == 0


def links_32():
    """Can gcc make 32-bit programs, and is their loader here, which the guest uses, too?"""
    return links(["gcc", "-m32", "-pthread", "-x", "c", "-"], HELLO) and LOADER_32.exists()


def flags_32():
    """Options for 32-bit programs. The kernel's headers are those of 64 bits, which only
    gcc-multilib would have gcc find: on x86 they are the same files."""
    multiarch = ui.output(["gcc", "-print-multiarch"]).strip()
    return ["-m32", "-idirafter", f"/usr/include/{multiarch}"]


@functools.cache
def why_not_32():
    """Why this machine cannot have 32-bit programs; '' if it can. Installs what they need."""
    packages("build")
    if links_32():
        return ""
    names = [x.format(number(version_of("gcc"))[0]) for x in PACKAGES_32]
    if not (shutil.which("dpkg-query") and shutil.which("apt-get")):
        return "gcc -m32 does not work; install the 32-bit libc and libgcc"
    try:
        install(names)
    except ui.Failure as failure:
        return failure.line()
    return "" if links_32() else f"gcc -m32 does not work, even with {' and '.join(names)}"


def find_llvm():
    """(bin folder, libclang folder, version) of the newest usable LLVM, or None."""
    folders = [Path(f"/usr/lib/llvm-{n}/bin") for n in range(40, 16, -1)]
    if clang := shutil.which("clang"):
        folders.append(Path(clang).resolve().parent)
    for folder in folders:
        version = version_of(folder / "clang")
        complete = all((folder / x).exists() for x in ("ld.lld", "llvm-ar", "llvm-objcopy"))
        if not version or not new_enough(version, "llvm") or not complete:
            continue
        for lib in (folder.parent / "lib", Path("/usr/lib64"), Path("/usr/lib")):
            if any(lib.glob("libclang*.so*")):
                return folder, lib, version
    return None


def find_rust():
    """(rustc, library sources, version) of the first usable Rust, or None."""
    for rustc in (os.environ.get("RUSTC"), "/usr/bin/rustc", shutil.which("rustc")):
        version = rustc and version_of(rustc)
        if not version or not new_enough(version, "rustc"):
            continue
        sysroot = ui.output([rustc, "--print", "sysroot"], check=False).strip()
        for library in (Path(f"/usr/src/rustc-{version}/library"),
                        Path(sysroot) / "lib/rustlib/src/rust/library"):
            if (library / "core/src/lib.rs").exists():
                return Path(rustc), library, version
    return None


def find_bindgen():
    for bindgen in (config.INSTALLED / "bin/bindgen", shutil.which("bindgen")):
        version = bindgen and version_of(bindgen)
        if version and new_enough(version, "bindgen"):
            return Path(bindgen), version
    return None


def require(find, names, what):
    """What `find` finds; install the packages `names` and look again if nothing."""
    if found := find():
        return found
    if names and shutil.which("apt-get"):
        install(names)
        if found := find():
            return found
    raise ui.Failure(f"no usable {what}", "looked in the usual places and on PATH",
                     f"install {what}" + (f", e.g. {' '.join(names)}" if names else ""))


def llvm_packages():
    """The newest LLVM that the distribution has."""
    for n in LLVM_VERSIONS:
        if shutil.which("apt-cache") and ui.output(["apt-cache", "madison", f"clang-{n}"],
                                                   check=False):
            return [x.format(n) for x in LLVM_PACKAGES]
    return []


@functools.cache
@ui.alone("set-up")
def toolchain():
    """Packages and programs for building; prints the versions once."""
    packages("tree")
    packages("build")
    minimum = config.PINS["minimum"]
    llvm, libclang, llvm_version = require(
        find_llvm, llvm_packages(), f"LLVM (clang, lld, libclang) >= {minimum['llvm']}")
    rustc, rust_src, rust_version = require(
        find_rust, RUST_PACKAGES,
        f"rustc >= {minimum['rustc']} with its library sources (rust-src)")
    if not find_bindgen():
        cargo = rustc.parent / "cargo"
        cargo = cargo if cargo.exists() else shutil.which("cargo") or "cargo"
        pin = config.PINS["tools"]["bindgen_cli"]
        ui.run([cargo, "install", "bindgen-cli", "--version", pin, "--locked",
                "--root", config.INSTALLED], f"set-up: building bindgen {pin}",
               config.log("bindgen"), counts=r"^\s+Compiling", unit="crates",
               env=config.environment(RUSTC=rustc, LIBCLANG_PATH=libclang),
               do="check that cargo can reach its registry, then run this again")
    bindgen, bindgen_version = require(find_bindgen, [], "bindgen")
    found = Toolchain(llvm, libclang, rustc, rust_src, bindgen, (
        ("rustc", rust_version), ("bindgen", bindgen_version), ("LLVM", llvm_version),
        ("gcc", version_of("gcc") or "none"), ("make", version_of("make") or "none")))
    table([(*found.versions[0], rustc), (*found.versions[1], bindgen),
           (*found.versions[2], llvm), ("rust-src", rust_version, rust_src)])
    return found


@functools.cache
@ui.alone("set-up")
def vng():
    """The vng program of virtme-ng, in a virtual environment inside the cache."""
    packages("boot")
    pin = config.PINS["tools"]["virtme_ng"]
    program, log = config.VENV / "bin/vng", config.log("virtme-ng")
    if not program.exists() or version_of(program) != pin:
        ui.run(["/usr/bin/python3", "-m", "venv", "--clear", config.VENV],
               "set-up: virtual environment", log, do="sudo apt-get install python3-venv")
        ui.run([config.VENV / "bin/pip", "install", "--disable-pip-version-check",
                f"virtme-ng=={pin}"], f"set-up: virtme-ng {pin}", log, append=True,
               do="check that pip can reach its index, then run this again")
    table([("virtme-ng", version_of(program), program),
           ("qemu", version_of("qemu-system-x86_64"), shutil.which("qemu-system-x86_64"))])
    return program


def table(rows):
    for name, version, where in rows:
        ui.say(f"  {name:10} {version or '?':10} {where}")


def everything():
    toolchain()
    vng()
    ui.say(f"  {'32 bits':10} {why_not_32() or 'gcc -m32 works'}")
