# SPDX-License-Identifier: GPL-2.0
"""The patch series: apply it, regenerate it, prove that it equals the checkout.

New kernel files live once, as files in this checkout (MAPPING says where they go
in the kernel tree). Edits of existing kernel files live only in patches/*.patch.
The patches hold both; `regen` writes the new files into them, `check` proves that
`git am` gives exactly those files back.

Everything but `git am` itself works on git objects, so no work tree is needed:
`git am` runs in a scratch work tree which has an index but no files.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kev import config, port, tree, ui
from kev.tree import git

#: Folders of the checkout -> where their files go in the kernel tree.
MAPPING = {
    "rust/kevent/": "fs/kevent/",
    "rust/kernel/": "rust/kernel/",
    "rust/include/": "include/",
    "rust/Documentation/": "Documentation/",
    "selftests/": "tools/testing/selftests/kevent/",
}
#: Files that need no SPDX line: texts for people, generated files, the patches.
NO_SPDX = re.compile(r"^patches/|^LICENSES/|\.lock$|\.json$")
#: Sign-offs are left to whoever submits; MAINTAINERS has an entry for all new files; and a test must
#: be able to tell a kernel that lacks a system call.
CHECKPATCH_IGNORE = "MISSING_SIGN_OFF,NO_AUTHOR_SIGN_OFF,FILE_PATH_CHANGES,ENOSYS"
REGEN = "scripts/series regen"
#: The cover letter, and the line behind which it is generated.
COVER, COVER_TAIL = "patches/0000-cover-letter.txt", "\nThe patches\n===========\n"


@dataclass(frozen=True)
class File:
    """A version of a file: git's mode and the blob."""
    mode: str
    blob: str


# ---- the checkout's side -----------------------------------------------------

def kernel_path(path):
    """Where a file of the checkout goes in the kernel tree."""
    for here, there in MAPPING.items():
        if path.startswith(here):
            return there + path.removeprefix(here)
    return None


def checkout_path(path):
    """Where a new file of the kernel tree lives in the checkout."""
    for here, there in MAPPING.items():
        if path.startswith(there):
            return here + path.removeprefix(there)
    return None


def project_files(checkout, *where):
    """The files of the project, tracked or new, without ignored ones."""
    names = git(checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard",
                "--", *where).split("\0")
    return sorted({n for n in names if n and (checkout / n).is_file()})


def checkout_files(checkout, repo):
    """{kernel path: File} of the new kernel files in the checkout; stores the blobs."""
    names = project_files(checkout, "rust", "selftests")
    homeless = [n for n in names if not kernel_path(n)]
    if homeless:
        raise ui.Failure(f"{homeless[0]} has no place in the kernel tree",
                         "its folder is not in MAPPING", "see MAPPING in scripts/kev/series.py")
    blobs = git(repo, "hash-object", "-w", "--no-filters", "--stdin-paths",
                data="".join(f"{checkout / n}\n" for n in names)).split()
    return {kernel_path(n): File("100755" if os.access(checkout / n, os.X_OK) else "100644", b)
            for n, b in zip(names, blobs)}


# ---- git's side --------------------------------------------------------------

def patch_files(checkout):
    return sorted((checkout / "patches").glob("[0-9]*.patch"))


def commits(repo, base, tip):
    """The commits of a series, oldest first; it must be a straight line."""
    found = git(repo, "rev-list", "--reverse", "--parents", f"{base}..{tip}").split("\n")[:-1]
    for line, parent in zip(found, [base] + [x.split()[0] for x in found]):
        if line.split()[1:] != [parent]:
            raise ui.Failure(f"commit {line[:12]} is not on a straight line from the base",
                             "merges, or a branch which does not start at `base`",
                             "git rebase base   # in the work tree")
    return [x.split()[0] for x in found]


def changes(repo, old, new):
    """{path: (File or None before, File or None after)} between two commits."""
    fields = git(repo, "diff-tree", "-r", "-z", "--no-renames", "--full-index", old, new)
    fields = fields.split("\0")[:-1]
    result = {}
    for meta, path in zip(fields[::2], fields[1::2]):
        old_mode, new_mode, old_blob, new_blob, _ = meta.lstrip(":").split()
        result[path] = tuple(None if set(blob) == {"0"} else File(mode, blob)
                             for mode, blob in ((old_mode, old_blob), (new_mode, new_blob)))
    return result


def new_files(repo, base, tip):
    """{path: File} of the files that a series adds to the tree."""
    return {p: after for p, (before, after) in changes(repo, base, tip).items()
            if before is None and after is not None}


@contextlib.contextmanager
def scratch(repo, commit):
    """A work tree with an index but without files, removed afterwards."""
    top = Path(tempfile.mkdtemp(prefix="am-", dir=config.cache("tmp")))
    try:
        git(repo, "worktree", "add", "-q", "--no-checkout", "--detach", top, commit)
        git(top, "read-tree", "HEAD")
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)
        git(repo, "worktree", "prune")


def am(work, patches, merge=()):
    """Plain `git am` of the patches, one commit each; gives the new tip.

    With `merge`, git's options for that, those that do not apply are merged three ways.
    """
    start = git(work, "rev-parse", "HEAD").strip()
    if not patches:
        return start
    try:
        git(work, *merge, "am", "--committer-date-is-author-date", *(["-3"] if merge else []),
            *patches)
    except ui.Failure as failure:
        done = int(git(work, "rev-list", "--count", f"{start}..HEAD"))
        raise ui.Failure(f"{patches[done].name} does not apply to this tree", failure.why,
                         "compare it with the tree; to port the series: git am -3 in a work "
                         "tree,\nthen scripts/series regen --from-tree") from failure
    return git(work, "rev-parse", "HEAD").strip()


def applied(base, checkout=config.CHECKOUT):
    """The tip that `git am` of the checkout's patches gives on the pristine base.

    If the checkout has patches for that version, they come first, and the series is merged.
    """
    series, first = patch_files(checkout), port.patches(checkout, base.version)
    if not first:
        with scratch(base.repo, base.commit) as work:
            return am(work, series)
    origin = tree.get_version(tree.PIN["version"])
    applied(origin, checkout)
    port.bring(base.repo, origin.repo, series)
    with scratch(base.repo, base.commit) as work:
        am(work, first)
        git(work, "checkout-index", "-q", "-u", "--", *port.edited(work, series))
        return am(work, series, port.options())


def applies(base):
    """Does the series apply to this base?"""
    try:
        applied(base)
    except ui.Failure as failure:
        ui.say(f"  {failure.what}")
        return False
    return True


def export(repo, base, tip, folder):
    """git format-patch, the same bytes on every machine; gives {name: bytes}."""
    git(repo, "format-patch", "-q", "-o", folder, "--numbered", "--zero-commit",
        "--full-index", "--no-signature", "--no-renames", "--no-thread", "--no-base",
        "--diff-algorithm=myers", "--indent-heuristic", "-U3", "-p", "--stat",
        f"{base}..{tip}")
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def cover(checkout, repo, base, tip):
    """The cover letter, with the number of the patches, their subjects and their diffstat."""
    path = checkout / COVER
    if not path.exists():
        return None
    subjects = git(repo, "log", "--reverse", "--format=%s", f"{base}..{tip}").splitlines()
    text = re.sub(r"\[PATCH \d+/\d+\]", f"[PATCH {0:0{len(str(len(subjects)))}}/{len(subjects)}]",
                  path.read_text(), count=1)
    head, found, _ = text.partition(COVER_TAIL)
    if not found:
        return text
    return "\n".join([head + found, *(f"{number:3}. {subject}" for number, subject
                                      in enumerate(subjects, 1)), "",
                      git(repo, "diff", "--stat=74", "--no-renames", base, tip)])


# ---- regen -------------------------------------------------------------------

def homeless(path):
    return ui.Failure(f"{path}: a new file with no place in the checkout",
                      "its folder is not in MAPPING",
                      "move it, or add its folder to MAPPING in scripts/kev/series.py")


def merge(repo, mine, base, other):
    """The blob of a three-way merge of blobs; where the changes meet, it is as in `other`."""
    with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
        paths = [Path(folder, name) for name in ("mine", "base", "other")]
        for path, blob in zip(paths, (mine, base, other)):
            write_blob(repo, File("100644", blob), path)
        ui.output(["git", "merge-file", "-q", "--theirs", *paths])
        return git(repo, "hash-object", "-w", paths[0]).strip()


def spread(repo, series, indexes, path, file):
    """{index of a patch: File}: to which of the patches that make a file an edit of it belongs.

    From the last one towards the first, what does not meet what a patch adds to the file is
    left to the patch before.
    """
    edits = {indexes[-1]: file}
    for earlier, later in reversed(list(zip(indexes, indexes[1:]))):
        before, after = (git(repo, "rev-parse", f"{series[i]}:{path}").strip()
                         for i in (earlier, later))
        merged = merge(repo, edits[later].blob, after, before)
        if merged == before:
            break
        edits[earlier] = File(file.mode, merged)
    return edits


def fold(repo, base, tip, wanted, add):
    """The series again, with its new files as in `wanted` ({kernel path: File}).

    A file that differs changes in the patches that its lines are of (see spread());
    one that is gone is left out from the start; a new one goes to the patch that
    `add` ({kernel path: patch number}) names.
    """
    series = commits(repo, base, tip)
    touched = {}
    for index, (parent, commit) in enumerate(zip([base] + series, series)):
        for path in changes(repo, parent, commit):
            touched.setdefault(path, []).append(index)
    present = new_files(repo, base, tip)
    in_base = set(git(repo, "ls-tree", "-r", "-z", "--name-only", base,
                      "--", *MAPPING.values()).split("\0"))
    edits = {}
    for path in sorted(present.keys() | wanted.keys()):
        if present.get(path) == wanted.get(path):
            continue
        here = checkout_path(path)
        if here is None:
            raise homeless(path)
        if path in in_base:
            raise ui.Failure(f"{here}: the kernel tree already has {path}",
                             "edits of existing files live only in patches/",
                             "edit it in the work tree, then scripts/series regen --from-tree")
        if path not in wanted:
            index = touched[path][0]
        elif path in present:
            for index, file in spread(repo, series, touched[path], path, wanted[path]).items():
                edits.setdefault(index, {})[path] = file
            continue
        elif path in add:
            index = add[path] - 1
            if not 0 <= index < len(series):
                raise ui.Failure(f"there is no patch {add[path]}",
                                 f"the series has {len(series)}", f"{REGEN} --add {here}=NUMBER")
        else:
            raise ui.Failure(f"{here} is in no patch", "a new file needs a patch that adds it",
                             f"{REGEN} --add {here}=NUMBER   # the patch's number")
        edits.setdefault(index, {})[path] = wanted.get(path)
    return replay(repo, base, series, edits)


def replay(repo, base, series, edits):
    """Commit the series again; edits[i] ({path: File or None}) hold from commit i on."""
    tip, now, active = base, git(repo, "rev-parse", f"{base}^{{tree}}").strip(), {}
    with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        for i, commit in enumerate(series):
            active |= edits.get(i, {})
            git(repo, "read-tree", commit, env=index)
            git(repo, "update-index", "--index-info", env=index, data="".join(
                f"{f.mode} {f.blob}\t{p}\n" if f else f"0 {'0' * 40}\t{p}\n"
                for p, f in active.items()))
            before, now = now, git(repo, "write-tree", env=index).strip()
            name, mail, date, message = git(
                repo, "log", "-1", "--format=%an%x00%ae%x00%ad%x00%B", "--date=raw",
                commit).split("\0")
            if now == before:
                raise ui.Failure(f'patch {i + 1} ("{message.splitlines()[0]}") would be empty',
                                 "all that it changes is gone from the checkout",
                                 "drop that commit in the work tree (git rebase -i base), then\n"
                                 "scripts/series regen --from-tree")
            person = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": mail,
                      "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
            tip = git(repo, "commit-tree", now, "-p", tip, env=person,
                      data=message.rstrip("\n") + "\n").strip()
    return tip


def settle(checkout, repo, base, branch, wanted, take):
    """Files that a developer's branch changed: equal to the checkout's, or taken from
    the side that `take` ("tree" or "checkout") names. Gives the files to fold in."""
    try:
        with scratch(repo, base) as work:
            exported = new_files(repo, base, am(work, patch_files(checkout)))
    except ui.Failure:
        exported = {}      # the patches are being replaced because they do not apply
    theirs, result = new_files(repo, base, branch), dict(wanted)
    for path in sorted(theirs.keys() | wanted.keys()):
        mine, tree_file = wanted.get(path), theirs.get(path)
        if tree_file in (mine, exported.get(path)) or take == "checkout":
            continue
        here = checkout_path(path)
        if here is None:
            raise homeless(path)
        if take != "tree":
            raise ui.Failure(f"{here} and {path} of the work tree differ",
                             "the branch changed a file that lives in the checkout",
                             "scripts/series regen --from-tree --take tree       # or:\n"
                             "scripts/series regen --from-tree --take checkout")
        if tree_file is None:
            (checkout / here).unlink()
            del result[path]
        else:
            write_blob(repo, tree_file, checkout / here)
            result[path] = tree_file
        ui.say(f"  {here}: taken from the work tree")
    return result


def write_blob(repo, file, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as out:
        subprocess.run(["git", "-c", "safe.directory=*", "-C", repo, "cat-file", "blob",
                        file.blob], stdout=out, check=True)
    path.chmod(0o755 if file.mode == "100755" else 0o644)


def regen(base, checkout=config.CHECKOUT, branch=None, add=(), take=None):
    """Write patches/ again, from the patches there or from a branch; gives the tip."""
    repo, start = base.repo, base.commit
    wanted = checkout_files(checkout, repo)
    if branch:
        wanted = settle(checkout, repo, start, branch, wanted, take)
    tip = fold(repo, start, branch or applied(base, checkout), wanted, dict(add))
    with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
        after = export(repo, start, tip, folder)
    before = {p.name: p.read_bytes() for p in patch_files(checkout)}
    (checkout / "patches").mkdir(exist_ok=True)
    for name in before.keys() - after.keys():
        (checkout / "patches" / name).unlink()
    written = [n for n in sorted(after) if after[n] != before.get(n)]
    for name in written:
        (checkout / "patches" / name).write_bytes(after[name])
        ui.say(f"  wrote patches/{name}")
    letter = cover(checkout, repo, start, tip)
    if letter is not None and letter != (checkout / COVER).read_text():
        (checkout / COVER).write_text(letter)
        ui.say(f"  wrote {COVER}")
    ui.say(f"series: {len(after)} patches, {len(written)} of them written")
    return tip


# ---- the developer's work tree -----------------------------------------------

def work_tree(base, folder=None):
    return Path(folder).absolute() if folder else config.CACHE / "work" / base.version


def unexported(base, folder):
    """What in the work tree is not in patches/; empty if nothing is."""
    branch, exported = (git(base.repo, "rev-parse", "-q", "--verify", ref, check=False)
                        for ref in ("refs/heads/kevent", "refs/kevent/exported"))
    if branch and branch != exported:
        return "commits on the branch kevent"
    if folder.exists() and git(folder, "status", "--porcelain"):
        return "changes that are not committed"
    return ""


def move_work_tree(base, tip, folder):
    """Put the branch `kevent` at `tip`; only files that differ are touched."""
    if folder.exists():
        git(folder, "checkout", "-q", "-f", "-B", "kevent", tip)
    else:
        git(base.repo, "worktree", "prune")
        git(base.repo, "worktree", "add", "-q", "-B", "kevent", folder, tip)
    git(base.repo, "update-ref", "refs/kevent/exported", tip)


def command_apply(args):
    base = tree.get(args.tree, applies)
    folder = work_tree(base, args.dir)
    if not args.force and (what := unexported(base, folder)):
        raise ui.Failure(f"{folder} has work that is not in patches/", what,
                         "scripts/series regen --from-tree   # keep it, or:\n"
                         "scripts/series apply --force       # throw it away")
    tip = applied(base)
    move_work_tree(base, tip, folder)
    count = len(commits(base.repo, base.commit, tip))
    ui.say(f"series: {count} patches applied, on the branch kevent in\n{folder}")
    return 0


def command_regen(args):
    base = tree.get(args.tree)
    port.refuse(config.CHECKOUT, base.version, "regen")
    if not base.pinned:
        ui.say("  note: this is not the pinned tree, so the patches may differ in details")
    add = {}
    for item in args.add:
        path, _, index = item.rpartition("=")
        if not index.isdigit() or not kernel_path(path):
            raise ui.Failure(f"--add {item} is not FILE=NUMBER",
                             "FILE is a path under " + ", ".join(MAPPING))
        add[kernel_path(path)] = int(index)
    folder, branch = work_tree(base, args.dir), None
    if args.from_tree:
        if not folder.exists():
            raise ui.Failure(f"there is no work tree {folder}", "", "scripts/series apply")
        if dirty := git(folder, "status", "--porcelain").rstrip():
            raise ui.Failure(f"{folder} has changes that are not committed", dirty,
                             f"git -C {folder} commit")
        branch = git(folder, "rev-parse", "HEAD").strip()
    safe = branch or not unexported(base, folder)
    tip = regen(base, branch=branch, add=add, take=args.take)
    if folder.exists() and safe:
        move_work_tree(base, tip, folder)
    elif folder.exists():
        ui.say(f"  note: {folder} has work of its own and was left as it is")
    return 0


# ---- check -------------------------------------------------------------------

def drift(checkout, repo, base, tip):
    """One line for each file that the checkout and the series do not agree about."""
    wanted, present = checkout_files(checkout, repo), new_files(repo, base, tip)
    lines = []
    for path in sorted(wanted.keys() | present.keys()):
        here = checkout_path(path)
        if here is None:
            lines.append(f"{path}: the series adds it, but its folder is not in MAPPING")
        elif path not in present:
            lines.append(f"{here}: no patch adds it; do: {REGEN} --add {here}=NUMBER")
        elif path not in wanted:
            lines.append(f"{here}: the series has it, the checkout does not; do: {REGEN}")
        elif wanted[path] != present[path]:
            lines.append(f"{here}: differs from what git am gives; do: {REGEN}")
    return lines


#: What may go from a line that an earlier patch added: the sign that it is the last of a
#: list, which goes on; and that code is not used yet, which then is, or a type has no values.
NOT_THE_LAST = re.compile(r" //$")
NOT_YET = re.compile(r"dead_code|^// Until |enum \w+ \{\}$|match \*?self \{\}$")


def taken_back(repo, parent, commit, path):
    """The lines of a file that a commit removes and does not add again."""
    diff = git(repo, "diff", "-U0", "--no-renames", parent, commit, "--", path).splitlines()
    lines = {sign: Counter(NOT_THE_LAST.sub("", line[1:]) for line in diff
                           if line.startswith(sign) and not line.startswith(sign * 3))
             for sign in "-+"}
    return [line for line in lines["-"] - lines["+"] if line.strip() and not NOT_YET.search(line)]


def rewritten(repo, base, tip):
    """One line for each file of which a patch removes lines that an earlier patch added it with."""
    series, lines, ours = commits(repo, base, tip), [], set()
    for number, (parent, commit) in enumerate(zip([base] + series, series), 1):
        changed = git(repo, "diff", "--numstat", "--no-renames", parent, commit)
        for _, removed, path in (line.split("\t") for line in changed.splitlines()):
            if path not in ours or removed in ("0", "-"):
                continue
            removed = len(taken_back(repo, parent, commit, path))
            if removed:
                lines.append(f"patch {number} removes {removed} lines of {path}, which an earlier "
                             "patch adds; do: edit the commits of the work tree, then "
                             "scripts/series regen --from-tree")
        ours |= new_files(repo, parent, commit).keys()
    return lines


def not_identical(checkout, repo, base, tip):
    """One line for each patch that is not, byte for byte, what regen would write."""
    with tempfile.TemporaryDirectory(dir=config.cache("tmp")) as folder:
        new = export(repo, base, tip, folder)
    old = {p.name: p.read_bytes() for p in patch_files(checkout)}
    wrong = [f"patches/{name}" for name in sorted(old.keys() | new.keys())
             if old.get(name) != new.get(name)]
    letter = cover(checkout, repo, base, tip)
    if letter is not None and letter != (checkout / COVER).read_text():
        wrong.append(COVER)
    return [f"{name}: is not what would be regenerated; do: {REGEN}" for name in wrong]


def without_spdx(checkout):
    lines = []
    for name in project_files(checkout):
        if NO_SPDX.search(name) or (checkout / name).is_symlink():
            continue
        with open(checkout / name, "rb") as f:
            head = b"".join(f.readline() for _ in range(3))
        if b"SPDX-License-Identifier:" not in head:
            lines.append(f"{name}: no SPDX-License-Identifier in its first three lines; add one")
    return lines


def checkpatch(checkout, repo):
    """What the tree's checkpatch.pl --strict objects to."""
    script = repo / "scripts/checkpatch.pl"
    if not script.exists() or not shutil.which("perl"):
        return [f"checkpatch could not run: {script} or perl is missing"]
    log = config.log("checkpatch")
    log.write_text(ui.output(["perl", script, f"--root={repo}", "--strict", "--terse",
                              "--show-types", "--no-summary", "--ignore", CHECKPATCH_IGNORE,
                              *patch_files(checkout)], check=False))
    return re.findall(r"^.*: (?:ERROR|WARNING|CHECK):.*$", log.read_text(), re.M)


def check(base, checkout=config.CHECKOUT):
    """All checks: [(name, list of problems)]."""
    repo, start = base.repo, base.commit
    if not patch_files(checkout):
        return [("series applies", ["patches/: there are no patches; do: "
                                    "scripts/series regen --from-tree"])]
    try:
        tip = applied(base, checkout)
    except ui.Failure as failure:
        return [("series applies", [f"{failure.what}: {failure.why}"])]
    parts = [("series applies", []),
             ("series equals the files", drift(checkout, repo, start, tip)),
             ("no patch rewrites an earlier one", rewritten(repo, start, tip))]
    if base.pinned:
        parts.append(("series regenerates the same", not_identical(checkout, repo, start, tip)))
    else:
        ui.say(f"  note: {base.repo.name} is not the pinned tree; patches were not compared")
    parts.append(("SPDX lines", without_spdx(checkout)))
    parts.append(("checkpatch --strict", checkpatch(checkout, repo)))
    return parts


def command_check(args):
    if args.base:
        base = tree.get_version(args.base)
        first = port.patches(config.CHECKOUT, base.version)
        ui.say(f"series check: on Linux {base.version}, applies only"
               + (f", after the {len(first)} patches of {first[0].parent.name}/" if first else ""))
        applied(base)
        ui.say("  ok    series applies\n"
               f"  to build and test it there: scripts/test --tree {base.version} build selftests")
        return 0
    base = tree.get(args.tree, applies)
    parts = check(base)
    for name, problems in parts:
        ui.say(f"  {'FAIL' if problems else 'ok':5} {name}")
        for line in problems:
            ui.say(f"        {line}")
    return 1 if any(problems for _, problems in parts) else 0
