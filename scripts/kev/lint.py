# SPDX-License-Identifier: GPL-2.0
"""What compilers and checkers say of the files that the series touches: nothing.

They are compiled once more, in an output folder of their own, with all that can warn
turned on. Only warnings of those files count: the kernel has others.
"""

import re

from kev import arch, build, config, series, tree, ui

#: Of compilers and sparse; and of rustc, clippy and rustdoc, which name the file below.
C_WARNING = re.compile(r"^(\S+?):(\d+):(?:\d+:)? ((?:fatal )?error|warning): (.*)$", re.M)
RUST_WARNING = re.compile(r"^((?:error|warning)(?:\[\w+\])?: .*)\n +--> (\S+?):(\d+)", re.M)
#: The releases of sparse do not know the operator that takes qualifiers off; what it
#: leaves of a type makes no difference to what sparse looks for.
SPARSE = "CHECK=sparse -D__typeof_unqual__=__typeof__"
KERNEL_DOC = "scripts/kernel-doc"


def touched(base, tip):
    """The files that the series adds or changes, in the kernel tree."""
    names = tree.git(base.repo, "diff", "--name-only", "--diff-filter=d", base.commit, tip)
    return sorted(names.split())


def warnings(text, source, files):
    """What `text` says of the files, a line for each, without doubles."""
    found = {}
    for path, line, kind, what in C_WARNING.findall(text):
        found[path, line, f"{kind}: {what}"] = None
    for what, path, line in RUST_WARNING.findall(text):
        found[path, line, what] = None
    def name(path):
        return path.removeprefix(f"{source}/").removeprefix("../")
    return [f"{name(path)}:{line}: {what}" for path, line, what in found if name(path) in files]


def objects(files):
    """What is made of the C files that the kernel of the tests has."""
    return sorted({"fs/kevent/" if name.startswith("fs/kevent/") else name[:-2] + ".o"
                   for name in files if name.endswith(".c")
                   and not name.startswith(("tools/", "rust/helpers/"))})


class Linter:
    """A configured output folder, and what make says in it."""

    def __init__(self, user_tree=None):
        base, self.source = build.patched_source(user_tree)
        self.files = touched(base, series.applied(base))
        self.out = build.out_folder(base, "lint")
        self.out.mkdir(parents=True, exist_ok=True)
        build.configure(self.source, self.out,
                        build.fragments(arch.X86_64, build.FRAGMENT, build.SELFTESTS_CONFIG))

    def make(self, name, *arguments, remove=()):
        """What make wrote; `remove` is made anew, so that its warnings come again."""
        for path in remove:
            (self.out / path).unlink(missing_ok=True)
        log = config.log(f"lint-{name}")
        ui.run(build.make(self.source, self.out, *arguments), f"lint: {name}", log,
               env=build.environment(), counts=r"^  [A-Z][A-Z0-9_. ]+ ", unit="steps")
        return log.read_text(errors="replace")

    def compiled(self):
        """Warnings of the compilers with W=1, and of clippy."""
        # The Rust abstractions are a part of what is prepared.
        text = self.make("prepare", "W=1", "CLIPPY=1", "prepare", remove=["rust/kernel.o"])
        kevent = [path.relative_to(self.out) for path in self.out.glob("fs/kevent/*.o")]
        text += self.make("compile", "W=1", "CLIPPY=1", *objects(self.files),
                          remove=[*kevent, *(x for x in objects(self.files) if x[-1] != "/")])
        return warnings(text, self.source, self.files)

    def sparse(self):
        """Warnings of sparse."""
        text = self.make("sparse", "W=1", "CLIPPY=1", "C=2", SPARSE, *objects(self.files))
        return warnings(text, self.source, self.files)

    def documented(self):
        """What kernel-doc does not like in the new C files."""
        new = [name for name in self.files if name.endswith((".c", ".h")) and "kevent" in name
               and not name.startswith("tools/")]
        log = config.log("lint-kernel-doc")
        status = ui.run([KERNEL_DOC, "-none", "-Wall", *new], "lint: kernel-doc", log,
                        cwd=self.source, check=False, env=config.environment())
        found = re.findall(r"^(?:Warning|Error): .*$", log.read_text(), re.M)
        return list(dict.fromkeys(found)) or ([f"exit status {status}, see {log}"] if status else [])

    def rustdoc(self):
        """What rustdoc does not like in the abstractions."""
        return warnings(self.make("rustdoc", "W=1", "CLIPPY=1", "rustdoc"), self.source,
                        self.files)
