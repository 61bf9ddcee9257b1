"""Help of commands with many options: those that several commands share have their own parts."""

from typing import Any

import click


class SectionOption(click.Option):
    """An option that help lists under a heading.

    Args:
        section: The heading.
    """

    def __init__(self, *names: Any, section: str, **options: Any) -> None:
        super().__init__(*names, **options)
        self.section = section


class SectionCommand(click.Command):
    """A command whose help lists its own options first, then each heading's."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the parts, in the order in which their first options were declared."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                heading = param.section if isinstance(param, SectionOption) else "Options"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class SectionGroup(click.Group, SectionCommand):
    """The same for a command that has commands of its own; they come last."""
