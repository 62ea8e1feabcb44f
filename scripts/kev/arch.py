# SPDX-License-Identifier: GPL-2.0
"""The architectures: what differs between them, in one table."""

from dataclasses import dataclass, field

from kev import config


@dataclass(frozen=True)
class Programs:
    """How programs of so many bits are made with clang, linked statically."""
    triple: str
    headers: str       # ARCH of the kernel's headers
    packages: tuple    # with the C library; {0} is the version of gcc


@dataclass(frozen=True)
class Qemu:
    package: str
    program: str
    machine: tuple     # arguments
    console: str       # for the kernel's command line


@dataclass(frozen=True)
class Arch:
    """An architecture whose kernel is built, and booted, on an x86-64 host.

    The host's own has neither `programs` nor `qemu`: gcc makes its programs, and
    virtme-ng boots it on the host's files.
    """
    name: str          # as --arch has it; NAME.config has what its kernel needs
    image: str         # what is booted, in the output folder; the file is a make target
    make: tuple = ()   # make variables that choose it
    programs: dict = field(default_factory=dict, hash=False)      # {bits: Programs}
    qemu: Qemu | None = None
    rust: str = ""     # Rust's name of it, for programs
    debian: str = ""   # Debian's name of it

    @property
    def native(self):
        return self.qemu is None

    @property
    def config(self):
        return config.SCRIPTS / f"{self.name}.config"

    @property
    def rust_programs(self):
        """Where cargo leaves them."""
        return config.CARGO_TARGET / self.rust / "release"

    def label(self, name):
        """The name of a step, a log or a folder that other architectures have, too."""
        return name if self.native else f"{self.name}-{name}"


X86_64 = Arch("x86_64", "arch/x86/boot/bzImage")

ARM64 = Arch(
    "arm64", "arch/arm64/boot/Image", ("ARCH=arm64",),
    {64: Programs("aarch64-linux-gnu", "arm64",
                  ("libc6-dev-arm64-cross", "libgcc-{0}-dev-arm64-cross")),
     32: Programs("arm-linux-gnueabihf", "arm",
                  ("libc6-dev-armhf-cross", "libgcc-{0}-dev-armhf-cross"))},
    Qemu("qemu-system-arm", "qemu-system-aarch64",
         ("-machine", "virt,gic-version=3", "-cpu", "cortex-a72"), "ttyAMA0"),
    "aarch64-unknown-linux-gnu", "arm64")

ALL = {arch.name: arch for arch in (X86_64, ARM64)}
