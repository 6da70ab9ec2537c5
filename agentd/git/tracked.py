"""Which files a repository has."""

from agentd.git.repository import Place
from agentd.git.run import git, zsplit


def files(place: Place) -> list[str]:
    """All tracked files of the working tree, from its top."""
    return zsplit(git(["ls-files", "-z", "--full-name"], cwd=place.top))
