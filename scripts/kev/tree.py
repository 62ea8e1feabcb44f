# SPDX-License-Identifier: GPL-2.0
"""Where the pristine kernel tree comes from, and git repositories made of it.

Each base is one repository in the cache, with the pristine tree as the only
commit of the branch `base`. The commit has a fixed author and date, so the same
tree gives the same commit everywhere. The repository's own work tree belongs to
the build (`Base.checkout`); a developer's work tree is a separate one.
"""

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from kev import config, setup, ui

PIN = config.PINS["base"]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def git(repo, *args, env=None, check=True, data=None):
    """Run git in `repo` with the project's fixed identity; gives its output."""
    return ui.output(["git", "-c", "safe.directory=*", "-c", "gc.auto=0",
                      "-c", "maintenance.auto=false", "-C", repo, *args],
                     env={**config.git_environment(), **(env or {})}, check=check, data=data)


def checkout(repo, commit):
    """Bring a work tree to `commit`, touching only files that differ."""
    git(repo, "checkout", "--quiet", "--force", "--detach", commit)


@dataclass(frozen=True)
class Base:
    """A pristine tree in git: its version and the repository that holds it."""
    version: str
    repo: Path

    @property
    def commit(self):
        return git(self.repo, "rev-parse", "base").strip()

    @property
    def pinned(self):
        """Is it, bit for bit, the tree that versions.toml pins?"""
        return git(self.repo, "rev-parse", "base^{tree}").strip() == PIN["tree"]

    @ui.alone("tree")
    def checkout(self, commit):
        """Bring the build's work tree to `commit`."""
        checkout(self.repo, commit)
        return self.repo


def make_version(top):
    """The version in a kernel tree's Makefile; None if it is no kernel tree."""
    try:
        text = (top / "Makefile").read_text(errors="replace")[:2000]
    except OSError:
        return None
    found = {k: v for k, v in re.findall(r"^(\w+) *= *(\S*)$", text, re.M)}
    if "PATCHLEVEL" not in found:
        return None
    return ".".join(found.get(x, "0") for x in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))


# ---- into git ----------------------------------------------------------------

def ready(repo):
    """The base in `repo`, if it was imported completely."""
    stamp = repo / ".git/kevent-base"
    return Base(stamp.read_text().strip(), repo) if stamp.exists() else None


def commit_tree(repo):
    """Turn the unpacked tree in `repo` into the base commit."""
    version = make_version(repo)
    if not version:
        raise ui.Failure(f"{repo} is no kernel tree", "it has no kernel Makefile",
                         "name the top folder of one with --tree")
    # Debian's tree has a .gitignore that hides every file which is not tracked; a
    # developer's new files would go unnoticed. Those two lines are taken out.
    ignore = repo / ".gitignore"
    if ignore.exists():
        ignore.write_text(ignore.read_text().replace("\n/*\n!/debian/\n", "\n"))
    git(repo, "init", "-q", "-b", "base")
    env, log = config.git_environment(), config.log("import")
    ui.run(["git", "-C", repo, "add", "-A", "-f", "."], "tree: adding the files to git",
           log, env=env)
    ui.run(["git", "-c", "gc.auto=0", "-C", repo, "commit", "-q", "-m", f"Linux {version}"],
           "tree: committing them", log, env=env, append=True)
    return finish(repo, version)


def finish(repo, version):
    (repo / ".git/kevent-base").write_text(version + "\n")
    return Base(version, repo)


def put(new, top):
    """Make `new` what is at `top`."""
    shutil.rmtree(top, ignore_errors=True)
    top.parent.mkdir(parents=True, exist_ok=True)
    new.rename(top)


def fresh(repo):
    """An empty folder for an import; what an interrupted one left is removed."""
    if repo.exists():
        shutil.rmtree(repo)
    repo.mkdir(parents=True)
    return repo


def import_tarball(tarball, repo):
    fresh(repo)
    ui.run(["tar", "-xf", tarball, "--strip-components=1", "--no-same-owner", "-C", repo],
           f"tree: unpacking {tarball.name}", config.log("unpack"),
           do=f"rm {tarball}   # then run this again; also: df -h {config.CACHE}")
    return commit_tree(repo)


def import_user_tree(path):
    """A tree that the user names. It is only read; git trees count as committed."""
    path = Path(path).absolute()
    version = make_version(path)
    if not version:
        raise ui.Failure(f"{path} is no kernel tree", "it has no kernel Makefile",
                         "name the top folder of a Linux source tree with --tree")
    is_git = (path / ".git").exists()
    state = git(path, "rev-parse", "HEAD").strip() if is_git \
        else (path / "Makefile").read_text(errors="replace")
    key = hashlib.sha256(f"{path}\n{state}".encode()).hexdigest()[:12]
    repo = config.cache("linux") / f"user-{version}-{key}"
    ui.say(f"tree: {path} (Linux {version}" + (f", commit {state[:12]})" if is_git else ")"))
    if base := ready(repo):
        return base
    fresh(repo)
    if not is_git:
        ui.run(["cp", "-a", f"{path}/.", repo], "tree: copying it", config.log("import"))
        return commit_tree(repo)
    if git(path, "status", "--porcelain", "-uno"):
        ui.say("  note: changes in it that are not committed are left out")
    git(repo, "init", "-q", "-b", "base")
    objects = git(path, "rev-parse", "--path-format=absolute", "--git-path", "objects").strip()
    (repo / ".git/objects/info/alternates").write_text(objects + "\n")
    tree = git(repo, "rev-parse", f"{state}^{{tree}}").strip()
    commit = git(repo, "commit-tree", tree, "-m", f"Linux {version}").strip()
    git(repo, "reset", "-q", "--hard", commit)
    return finish(repo, version)


# ---- Debian's source package -------------------------------------------------

class Apt:
    """A private apt: the system's mirror and keyring, nothing else of the system's.

    With suites None it has the system's suites, e.g. for another architecture.
    """

    def __init__(self, what="tree", suites=PIN["suites"], architecture=None):
        self.what, self.suites, self.top = what, suites, config.cache("apt", what)
        self.architecture, self.log = architecture, config.log(f"{what}-apt")
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.top / folder).mkdir(parents=True, exist_ok=True)

    def command(self, program, *args):
        options = {"Dir::Etc::sourcelist": self.top / "sources.list",
                   "Dir::Etc::sourceparts": "-", "Dir::State": self.top / "state",
                   "Dir::State::status": "/dev/null", "Dir::Cache": self.top / "cache",
                   "APT::Sandbox::User": "root", "Acquire::Languages": "none"}
        if self.architecture:
            options |= {"APT::Architecture": self.architecture,
                        "APT::Architectures": self.architecture}
        return [program, "-q", *(x for k, v in options.items() for x in ("-o", f"{k}={v}")), *args]

    @staticmethod
    def usable():
        return shutil.which("apt-get") and KEYRING.exists()

    def update(self):
        """Read the package lists, from the first of the system's mirrors that has them."""
        found = [line.split() for line in ui.output(
            ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)",
             "Created-By: Packages"], check=False).splitlines()]
        uris = dict.fromkeys(uri for uri, _ in found if "security" not in uri)
        if self.suites:
            return any(self.read((uri, suite) for suite in self.suites) for uri in uris)
        return self.read((uri, suite) for uri, suite in found if not suite.endswith("/"))

    def read(self, sources):
        """Read the lists of these (mirror, suite); True if all could be read."""
        (self.top / "sources.list").write_text("".join(
            f"deb [signed-by={KEYRING}] {uri} {suite} main\n" for uri, suite in sources))
        return ui.run(self.command("apt-get", "update", "-o", "APT::Update::Error-Mode=any"),
                      f"{self.what}: package lists", self.log, check=False) == 0

    def download(self, *packages, **how):
        """Download packages ("name" or "name=version") to a folder of their own; None if they
        cannot be had, and need not. `how` is as for ui.run."""
        folder = fresh(config.cache("download") / self.what)
        status = ui.run(self.command("apt-get", "download", *packages),
                        f"{self.what}: downloading {' '.join(packages)}", self.log, cwd=folder,
                        append=True, **how)
        return None if status else folder

    def versions(self):
        """All linux-source packages: [(Linux version, package, package version)]."""
        names = ui.output(self.command("apt-cache", "pkgnames", "linux-source-")).split()
        found = []
        for line in ui.output(self.command("apt-cache", "madison", *names)).splitlines() \
                if names else ():
            package, version, where = (x.strip() for x in line.split("|"))
            upstream = re.match(r"(\d+\.\d+(\.\d+)?)-", version)
            if where.endswith("Packages") and upstream \
                    and re.fullmatch(r"linux-source-[\d.]+", package):
                found.append((upstream.group(1), package, version))
        return found

    def fetch(self, version, package, package_version):
        """Download a package and import the tree in it."""
        folder = self.download(f"{package}={package_version}",
                               do=f"check the network and the disk (df -h {config.CACHE}), "
                                  "then run this again")
        unpacked = fresh(folder / "unpacked")
        ui.run(["dpkg-deb", "-x", next(folder.glob("*.deb")), unpacked],
               "tree: unpacking the package", self.log, append=True)
        tarball = next(unpacked.glob("usr/src/linux-source-*.tar.*"))
        if package_version == PIN["package_version"]:
            expect_sha256(tarball, PIN["tarball_sha256"])
        base = import_tarball(tarball, config.cache("linux") / version)
        shutil.rmtree(folder)
        return base


def expect_sha256(path, wanted):
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != wanted:
        raise ui.Failure(f"{path.name} is not the file that was expected",
                         f"sha256 is {found}, not {wanted}",
                         f"rm {path}   # then run this again")


# ---- kernel.org --------------------------------------------------------------

def kernel_org(version):
    """Download and import kernel.org's tarball of `version`."""
    name = f"linux-{version.removesuffix('.0')}.tar.xz"
    url, path = PIN["kernel_org"], config.cache("download") / name
    try:
        with urllib.request.urlopen(f"{url}/sha256sums.asc", timeout=15) as answer:
            sums = answer.read().decode()
        wanted = re.search(rf"^([0-9a-f]{{64}})  {re.escape(name)}$", sums, re.M)
        if not wanted:
            raise ui.Failure(f"kernel.org has no {name}", "", "name a version that it has")
        progress = ui.Progress(f"tree: downloading {name}")
        with urllib.request.urlopen(f"{url}/{name}", timeout=60) as answer, \
                open(path, "wb") as out:
            while data := answer.read(1 << 20):
                out.write(data)
                progress.update(f"{out.tell() >> 20} MB,")
        progress.done()
    except (urllib.error.URLError, OSError) as error:
        raise ui.Failure(f"kernel.org's {name} could not be read", str(error)) from error
    expect_sha256(path, wanted.group(1))
    base = import_tarball(path, config.cache("linux") / version)
    path.unlink()
    return base


# ---- choosing ----------------------------------------------------------------

def order(available, wanted):
    """Other versions, in the order in which they may stand in for `wanted`: first
    the same x.y, nearest first; then the newer ones, nearest first."""
    want = setup.number(wanted)
    near = sorted((x for x in available if setup.number(x[0])[:2] == want[:2]),
                  key=lambda x: abs(setup.number(x[0] + ".0")[2] - want[2]))
    newer = sorted((x for x in available if setup.number(x[0])[:2] > want[:2]),
                   key=lambda x: setup.number(x[0]))
    return near + newer


@ui.alone("tree")
def get(user_tree=None, applies=lambda base: True):
    """The base to work on. `applies` says whether the series applies to a base; it
    is asked only when the pinned version cannot be had."""
    setup.packages("tree")
    if user_tree := user_tree or os.environ.get("KEVENT_TREE"):
        a_version = re.fullmatch(r"\d+\.\d+(\.\d+)?", user_tree)
        return get_version(user_tree) if a_version else import_user_tree(user_tree)
    if base := ready(config.cache("linux") / PIN["version"]):
        return base
    apt, available, problems = Apt(), [], []
    if apt.usable() and apt.update():
        available = apt.versions()
        pinned = (PIN["version"], PIN["package"], PIN["package_version"])
        if pinned in available:
            return apt.fetch(*pinned)
        problems.append(f"the distribution no longer has {PIN['package']} {PIN['package_version']}")
    else:
        problems.append("no package lists with kernel sources (see the log)")
    try:
        return kernel_org(PIN["version"])
    except ui.Failure as failure:
        problems.append(f"{failure.what} {failure.why}")
    for candidate in order(available, PIN["version"]):
        base = ready(config.cache("linux") / candidate[0]) or apt.fetch(*candidate)
        if applies(base):
            ui.say(f"\n*** NOT the pinned Linux {PIN['version']}, but {candidate[0]}: "
                   + "; ".join(problems) + " ***\n")
            return base
        problems.append(f"the series does not apply to {candidate[0]}")
    raise ui.Failure(f"no tree of Linux {PIN['version']}, nor one that the series applies to",
                     "\n".join(problems),
                     "get a Linux source tree and name it: --tree PATH or KEVENT_TREE=PATH\n"
                     "versions on offer: " + (", ".join(x[0] for x in available) or "none"),
                     config.log("tree-apt"))


@ui.alone("tree")
def get_version(wanted):
    """The base of another version, e.g. "7.2" or "7.2.6": cached, Debian's, or kernel.org's."""
    setup.packages("tree")
    for repo in sorted(config.cache("linux").glob("[0-9]*"), reverse=True,
                       key=lambda p: setup.number(p.name)):
        if f"{repo.name}.".startswith(f"{wanted}.") and ready(repo):
            return ready(repo)
    apt = Apt()
    if apt.usable() and apt.update():
        found = [x for x in apt.versions() if f"{x[0]}.".startswith(f"{wanted}.")]
        if found:
            return apt.fetch(*max(found, key=lambda x: setup.number(x[0])))
    return kernel_org(wanted)
