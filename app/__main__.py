"""The command line: `seqserve serve|suggest|score|classify|caption|models|keys`."""

import os
import sys
from functools import partial
from typing import Annotated, Final

import tyro

from app.commands import console, images, store, texts
from app.errors import SeqserveError, SettingsError
from app.settings import Settings, unknown_variables

USAGE: Final = 2  # exit status


def serve(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> int:
    """Start the server. Each option can also be set as SEQSERVE_…; options override the environment."""
    from app.server import serve

    return serve.serve(settings)


def main() -> None:
    """Run the command line. A SeqserveError is printed as one line on stderr, without a traceback."""
    console.open_closed_streams()
    try:
        settings = Settings()
        if sys.argv[1:2] != ["serve"]:  # which logs them
            for warning in unknown_variables(os.environ):
                console.print_error(warning)
        with console.reported_output():
            status = tyro.extras.subcommand_cli_from_dict(
                {
                    "serve": partial(serve, settings=settings),
                    "suggest": partial(texts.suggest, store=settings.store, threads=settings.threads),
                    "score": partial(texts.score, store=settings.store, threads=settings.threads),
                    "classify": partial(images.classify, store=settings.store, threads=settings.threads),
                    "caption": partial(images.caption, store=settings.store, threads=settings.threads),
                    "models": partial(store.models, store=settings.store),
                    "keys": partial(store.keys, file=settings.api_keys_file),
                },
                prog="seqserve",
                description="Serve recurrent sequence models over HTTP, or run them on the command line.",
                sort_subcommands=False,
                config=(tyro.conf.OmitArgPrefixes,),
            )
        sys.exit(status)
    except SeqserveError as error:
        console.print_error(error)
        sys.exit(USAGE if isinstance(error, SettingsError) else console.FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
