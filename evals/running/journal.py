"""What a long pass has found so far, so that a killed run goes on behind it."""

import dataclasses
import json
import pathlib


@dataclasses.dataclass(frozen=True)
class Journal:
    """A file of values, a line of json each, written as soon as they are known.

    Attributes:
      file: in a folder that is there.
    """

    file: pathlib.Path

    def read(self) -> list:
        """The values so far. A line that a killed run left half written is cut off.

        Raises:
          ValueError: a whole line is no json.
        """
        if not self.file.exists():
            return []
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.file.open("r+b") as file:
                file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.split(b"\n")[:-1]]
        except ValueError as error:
            raise ValueError(f"{self.file} is damaged ({error}): delete it") from None

    def append(self, value) -> None:
        """Adds a value."""
        with self.file.open("ab") as file:
            file.write(json.dumps(value).encode() + b"\n")
