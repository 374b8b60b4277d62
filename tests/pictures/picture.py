#!/usr/bin/env python3
"""Runs a command in a terminal of its own and draws what is on the screen as SVG.

usage: picture.py [--size COLUMNSxROWS] [--keys SECONDS:KEYS]... --title TEXT --made-by HASH OUT.svg COMMAND...

Knows as much of a terminal as vmsup uses of one, and gives up at a sequence that it does not know: a picture that is not what a
terminal shows is worth nothing. Keys are sent so many seconds after the ones before. Where the command uses the alternate
screen, the picture is what stood there when it left; else it is all that was written, without the empty rows below.
"""
import argparse
import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from xml.sax.saxutils import escape

COLOURS = ["#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4"]
TEXT, BACKGROUND, PROMPT, DIM = "#c9d1d9", "#0d1117", "#8b949e", 0.6
WIDTH, HEIGHT, MARGIN, FONT = 8.4, 18, 12, 14
# The longest that a command may take.
LIMIT = 120
PLAIN = (None, frozenset())
SEQUENCE = re.compile(r"\x1b(?:\[([?]?)([0-9;]*)([@-~])|([78=>])|[()]B)")


class Screen:
    """Rows of cells, each a character and how it looks."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.x = self.y = 0
        self.style = PLAIN
        self.left = None
        self.clear()

    def clear(self):
        self.cells = [[(" ", PLAIN)] * self.columns for _ in range(self.rows)]

    def write(self, text):
        """Takes text in, and returns what may be the beginning of a sequence."""
        at = 0
        while at < len(text):
            char = text[at]
            if char == "\x1b":
                match = SEQUENCE.match(text, at)
                if not match:
                    if len(text) - at > 32:
                        sys.exit(f"picture: not known: {text[at:at + 32]!r}")
                    return text[at:]
                self.control(*match.groups())
                at = match.end()
                continue
            at += 1
            if char == "\n":
                self.y += 1
            elif char == "\r":
                self.x = 0
            elif char >= " ":
                self.put(char)
            else:
                sys.exit(f"picture: not known: {char!r}")
        return ""

    def put(self, char):
        if self.x == self.columns:
            self.x, self.y = 0, self.y + 1
        if self.y >= self.rows:
            sys.exit("picture: more rows than the terminal has")
        self.cells[self.y][self.x] = (char, self.style)
        self.x += 1

    def control(self, private, numbers, final, short):
        numbers = [int(n or 0) for n in numbers.split(";")] if numbers else []
        first = numbers[0] if numbers else 0
        if short or final is None or final == "q":
            return
        if private:
            # 1049: the alternate screen. 25: the cursor, which is not drawn.
            if first == 1049 and final == "l":
                self.left = [row[:] for row in self.cells]
            if first == 1049:
                self.clear()
            elif first not in (25, 7, 2004):
                sys.exit(f"picture: mode {first} is not known")
        elif final in "Hf":
            self.y, self.x = max(first, 1) - 1, max(numbers[1] if len(numbers) > 1 else 1, 1) - 1
        elif final in "ABCD":
            step = max(first, 1)
            self.y += {"A": -step, "B": step}.get(final, 0)
            self.x += {"C": step, "D": -step}.get(final, 0)
        elif final == "G":
            self.x = max(first, 1) - 1
        elif final == "J" and first == 2:
            self.clear()
        elif final == "K" and first == 0:
            self.cells[self.y][self.x:] = [(" ", PLAIN)] * (self.columns - self.x)
        elif final == "m":
            self.look(numbers or [0])
        else:
            sys.exit(f"picture: CSI {numbers} {final} is not known")

    def look(self, numbers):
        colour, marks = self.style
        names = {1: "bold", 2: "dim", 4: "underline", 7: "reverse"}
        while numbers:
            number = numbers.pop(0)
            if number == 0:
                colour, marks = PLAIN
            elif number in names:
                marks |= {names[number]}
            elif number == 22:
                marks -= {"bold", "dim"}
            elif number in (24, 27):
                marks -= {names[number - 20]}
            elif 30 <= number <= 37:
                colour = COLOURS[number - 30]
            elif number == 38 and numbers[:1] == [5] and numbers[1] < 16:
                colour = COLOURS[numbers[1] % 8]
                del numbers[:2]
            elif number == 39:
                colour = None
            elif number not in (23, 25, 28, 29, 49, 59):
                sys.exit(f"picture: SGR {number} is not known")
        self.style = (colour, marks)


def run(command, screen, keys):
    """Runs the command until it ends; returns its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        # The child waits for the size: it could ask before it is set.
        sys.stdin.readline()
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", screen.rows, screen.columns, 0, 0))
    modes = termios.tcgetattr(terminal)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, modes)
    os.write(terminal, b"\n")
    begun = sent = time.monotonic()
    unread, rest = b"", ""
    while True:
        now = time.monotonic()
        if now - begun > LIMIT:
            sys.exit("picture: the command does not end")
        if keys and now - sent >= keys[0][0]:
            os.write(terminal, keys.pop(0)[1].encode())
            sent = now
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            unread += os.read(terminal, 65536)
        except OSError:  # EIO: the last of the other side is gone
            break
        # A character may be cut anywhere.
        for end in range(len(unread), max(len(unread) - 4, -1), -1):
            try:
                text = unread[:end].decode()
            except UnicodeDecodeError:
                continue
            unread = unread[end:]
            rest = screen.write(rest + text)
            break
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def runs(row):
    """Neighbours that look alike, as (column, text, style); blanks that look like nothing are left out."""
    at = 0
    while at < len(row):
        style = row[at][1]
        end = at
        while end < len(row) and row[end][1] == style:
            end += 1
        text = "".join(char for char, _ in row[at:end])
        marks = style[1] & {"reverse", "underline"}
        if text.strip() or marks:
            lead = 0 if marks else len(text) - len(text.lstrip())
            yield at + lead, text[lead:] if marks else text.strip(" "), style
        at = end


def draw(rows, columns, title, made_by):
    """The picture: each run at its place, stretched to its cells whatever the font."""
    width = round(columns * WIDTH + 2 * MARGIN)
    height = (len(rows) + 2) * HEIGHT + 2 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        f"<!-- made by tests/pictures/make of sha256 {made_by} -->",
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="{BACKGROUND}"/>',
        f'<g font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{FONT}" fill="{TEXT}">',
    ]

    def text(column, line, content, attributes):
        x, y = MARGIN + column * WIDTH, MARGIN + line * HEIGHT + FONT
        length = len(content) * WIDTH
        out.append(
            f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve"'
            f"{attributes}>{escape(content)}</text>"
        )

    text(0, 0, f"$ {title}", f' fill="{PROMPT}"')
    for number, row in enumerate(rows):
        for column, content, (colour, marks) in runs(row):
            attributes = ""
            if "reverse" in marks:
                x, y = MARGIN + column * WIDTH, MARGIN + (number + 2) * HEIGHT - 1
                box = len(content) * WIDTH
                out.append(f'<rect x="{x:.1f}" y="{y}" width="{box:.1f}" height="{HEIGHT}" fill="{colour or TEXT}"/>')
                attributes = f' fill="{BACKGROUND}"'
            elif colour:
                attributes = f' fill="{colour}"'
            if "bold" in marks:
                attributes += ' font-weight="bold"'
            if "underline" in marks:
                attributes += ' text-decoration="underline"'
            if "dim" in marks:
                attributes += f' opacity="{DIM}"'
            if content.strip():
                text(column, number + 2, content, attributes)
    return "\n".join([*out, "</g>", "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="100x200")
    parser.add_argument("--keys", action="append", default=[])
    parser.add_argument("--title", required=True)
    parser.add_argument("--made-by", required=True)
    parser.add_argument("out")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    columns, rows = map(int, args.size.split("x"))
    screen = Screen(columns, rows)
    keys = [key.split(":", 1) for key in args.keys]
    status = run(args.command, screen, [(float(after), what.encode().decode("unicode_escape")) for after, what in keys])
    if status not in (0, 1):
        sys.exit(f"picture: exit status {status}")
    rows = screen.left or screen.cells
    while rows and all(char == " " and style == PLAIN for char, style in rows[-1]):
        rows.pop()
    with open(args.out, "w", encoding="utf-8") as file:
        file.write(draw(rows, columns, args.title, args.made_by))


main()
