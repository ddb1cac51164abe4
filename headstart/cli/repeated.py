"""Lets one option take several values, as shells expand `--wav *.wav`."""

from __future__ import annotations


def repeat_option(
    args: list[str], option: str, *, behind_argument: bool = False, valued: tuple[str, ...] = ()
) -> list[str]:
    """`--wav a b c` as `--wav a --wav b --wav c`.

    Args:
        args: The words of a command line.
        option: Which option.
        behind_argument: The command has an argument of its own: before that has been seen, the
            option takes one value only, for the next word may be the argument.
        valued: The options whose values must not be taken for that argument.
    """
    repeated: list[str] = []
    has_argument, greedy = not behind_argument, False
    words = iter(args)
    for word in words:
        if word == option:
            repeated += [word, *(next_word for next_word in [next(words, None)] if next_word)]
            greedy = has_argument
        elif word.startswith("-"):
            repeated.append(word)
            greedy = False
            if word in valued:
                repeated += [next_word for next_word in [next(words, None)] if next_word]
        elif greedy:
            repeated += [option, word]
        else:
            repeated.append(word)
            has_argument = True
    return repeated
