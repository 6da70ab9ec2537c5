import os

from agentd import door


def main() -> int:
    """The console entry. A short verb is carried out by the resident process, anything else here."""
    code = door.handed_over()
    if code is not None:
        os._exit(code)  # nothing is buffered yet, and to take the interpreter apart takes a millisecond
    from agentd import cli, resident

    code = cli.main()
    resident.start()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
