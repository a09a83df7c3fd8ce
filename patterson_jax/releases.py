"""The release file of the trained networks: how it is made, described and fetched.

It is one archive with what is needed to use the networks of `pretrained/`; setup.cfg lists those files. `networks.json`
comes with the code and describes the archive. Where a network is missing, the archive is fetched once, from the address
in `networks.json` or in the environment variable PATTERSON_JAX_NETWORKS. Only the archive with the SHA-256 of
`networks.json` is accepted, wherever it comes from.
"""

import configparser
import dataclasses
import hashlib
import http.client
import io
import json
import os
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from patterson_jax.errors import InputError, require
from patterson_jax.writing import user_cache_directory, write_json

ADDRESS = 'PATTERSON_JAX_NETWORKS'  # environment variable
SCHEMES = ('https', 'http', 'file')
MANIFEST = 'networks.json'
PACKAGE = Path(__file__).parent
SECONDS = 60.0  # without an answer
EARLIEST = (1980, 1, 1, 0, 0, 0)  # of ZIP archives; the time of every file
UNIX = 3  # the system that is named as the maker of every file
READABLE = 0o644 << 16  # mode of every file


@dataclasses.dataclass(frozen=True)
class Release:
    """The release file that belongs to this version of the code.

    Attributes:
        file: its name.
        size: in bytes.
        sha256: of its content.
        networks: names of the networks in it.
        address: of the folder that has it, https:// or file://; '' if it is not known.
    """

    file: str
    size: int
    sha256: str
    networks: tuple[str, ...]
    address: str = ''


def make_archive(root: Path) -> bytes:
    """The release file of the networks in a clone of the repository. The same networks give the same bytes.

    It is a ZIP archive without compression: weights are compressed already, and compressors differ between versions.

    Args:
        root: of the clone.
    """
    settings = configparser.ConfigParser()
    settings.read(root / 'setup.cfg')
    patterns = settings['options.package_data']['patterson_jax.pretrained'].split()
    place = root / 'pretrained'
    found = (each for pattern in patterns for each in place.glob(pattern))
    files = (path for each in found for path in (each, *each.rglob('*')) if path.is_file())  # ** may match folders only
    names = {path.relative_to(place).as_posix() for path in files}
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w', zipfile.ZIP_STORED) as archive:
        for name in sorted(names):
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.create_system, entry.external_attr = UNIX, READABLE
            archive.writestr(entry, (place / name).read_bytes())
    return content.getvalue()


def describe(archive: bytes, address: str = '') -> Release:
    """The description of a release file, whose name has the first digits of its SHA-256."""
    seal = hashlib.sha256(archive).hexdigest()
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        networks = sorted({PurePosixPath(name).parts[0] for name in opened.namelist()})
    return Release(f'patterson_jax-networks-{seal[:12]}.zip', len(archive), seal, tuple(networks), address)


def read_release(package: Path = PACKAGE) -> Release:
    """The release file that `networks.json` in the package describes."""
    fields = json.loads((package / MANIFEST).read_text(encoding='utf-8'))
    return Release(**fields | {'networks': tuple(fields['networks'])})


def update_manifest(root: Path) -> bytes:
    """Writes `networks.json` for the networks in a clone, with the address that it has; returns their release file."""
    archive, package = make_archive(root), root / 'patterson_jax'
    address = read_release(package).address if (package / MANIFEST).exists() else ''
    write_json(package / MANIFEST, dataclasses.asdict(describe(archive, address)))
    return archive


def fetched_network(name: str, release: Release) -> Path:
    """The directory of a network in the user's cache. If it is not there, the release file is fetched and unpacked.

    Args:
        name: of a network of the release file.
        release: describes the file.

    Raises:
        InputError: no address is known, the file cannot be fetched or is another one, or the cache cannot hold it.
    """
    try:
        place = user_cache_directory() / 'networks' / release.sha256[:12]
    except RuntimeError as error:  # without a home directory
        raise InputError(f'{name} is not installed, and there is no cache to keep it in: set XDG_CACHE_HOME') from error
    if not place.is_dir():
        archive = _fetch(_address(name, release), release)
        try:
            _unpack(archive, release, place)
        except OSError as error:
            raise InputError(f'{place.parent}: {name} cannot be kept there: {error.strerror or error}') from error
    return place / name


def _address(name, release):
    """The address of the release file."""
    folder = os.environ.get(ADDRESS) or release.address
    if not folder:
        raise InputError(
            f'{name} is not installed, and no address is known to fetch it from; set {ADDRESS} to the address of the '
            f'folder that has {release.file}, https://… or file://…'
        )
    allowed = 'an address that begins with https://, http:// or file://'
    require(urllib.parse.urlsplit(folder).scheme in SCHEMES, ADDRESS, folder, allowed)
    return f'{folder.rstrip("/")}/{release.file}'


def _fetch(address, release):
    """The content of the release file. Raises InputError if it is not the one that is described."""
    print(f'note: fetching trained networks, {release.size / 1e6:.1f} MB, from {address}', file=sys.stderr)
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as response:
            content = response.read(release.size + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f'{address} cannot be fetched: {error}') from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise InputError(f'{address} cannot be fetched: {getattr(error, "reason", error)}') from error
    if len(content) > release.size:
        raise InputError(f'{address} has more than {release.size} bytes; it is not the file of this version')
    seal = hashlib.sha256(content).hexdigest()
    if seal != release.sha256:
        raise InputError(
            f'{address} is not the file of this version: its {len(content)} bytes have the SHA-256 {seal}; '
            f'{release.size} with {release.sha256} are expected'
        )
    return content


def _unpack(archive, release, place):
    """Unpacks a release file beside a directory and renames the result to it, so that it is never half there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix='.', dir=place.parent) as part,
        zipfile.ZipFile(io.BytesIO(archive)) as opened,
    ):
        whole = Path(part) / 'networks'
        for entry in opened.infolist():
            path = PurePosixPath(entry.filename)
            if path.is_absolute() or '..' in path.parts or set('\\:') & set(entry.filename):
                raise InputError(f'{release.file} has a file that would be outside of it: {entry.filename}')
            target = whole / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(opened.read(entry))
        try:
            whole.rename(place)
        except OSError:
            if not place.is_dir():  # else another process was faster
                raise
