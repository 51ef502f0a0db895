"""Whose drawings and words the models learnt from, and what their licences ask of those who pass the weights on."""

from __future__ import annotations

from collections.abc import Sequence

from models.training.animations import ANIMATIONS
from models.training.artwork import PACKAGES, Package

CREDITS = {  # package: the work, who made it, where it lives
    "unicode-emoji-json": ("emoji names", "2019 Mu-An Chiou", "github.com/muan/unicode-emoji-json"),
    "emojilib": ("emoji keywords", "2014 Mu-An Chiou", "github.com/muan/emojilib"),
    "@lobehub/fluent-emoji-3d": ("Fluent Emoji", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji"),
    "@iconify-json/noto": ("Noto Emoji", "Google", "github.com/googlefonts/noto-emoji"),
    "@iconify-json/twemoji": ("Twemoji", "Twitter and contributors", "github.com/jdecked/twemoji"),
    "@iconify-json/fluent-emoji-flat": ("Fluent Emoji", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji"),
    "@iconify-json/noto-v1": ("Noto Emoji, first version", "Google", "github.com/googlefonts/noto-emoji"),
    "@iconify-json/emojione": ("EmojiTwo", "EmojiTwo and EmojiOne contributors", "github.com/EmojiTwo/emojitwo"),
    "@iconify-json/fxemoji": ("FxEmoji", "2015 Mozilla Foundation", "github.com/mozilla/fxemoji"),
    "@iconify-json/fluent-emoji": ("Fluent Emoji", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji"),
}
CREDITS |= {
    package.name: ("Fluent Emoji Animated", "Microsoft Corporation", "github.com/microsoft/fluentui-emoji-animated")
    for package in ANIMATIONS
}
LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
}
MIT_TEXT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
NOTICE_INTRO = """\
The models in this folder were trained on these works. The drawings were rendered to small pictures, moved, mirrored and
laid on colours; the contact sheets beside the models show some of them, reduced. Their makers do not endorse the
models. The autoencoders saw all drawings listed here, the other networks only the styles that their cards name.
"""


def notice(packages: Sequence[Package] = (*PACKAGES, *ANIMATIONS)) -> str:
    """The attribution that goes with the weights. Raises KeyError for a package that CREDITS does not know."""
    parts = [NOTICE_INTRO]
    for package in packages:
        work, maker, home = CREDITS[package.name]
        use = f"drawings, style {package.style}" if package.style else "words"
        use = "motion" if package in ANIMATIONS else use
        parts += [f"{work} ({use})", f"  Copyright {maker}; https://{home}"]
        parts += [f"  {package.licence}, {LICENCES[package.licence]}"]
        parts += [f"  from the npm package {package.name} {package.version}"]
        if work == "FxEmoji":
            parts += [f"  Its makers license the visual design as CC-BY-4.0, {LICENCES['CC-BY-4.0']}"]
        parts += [""]
    return "\n".join([*parts, "The MIT licence, for the works above that are under it:", "", MIT_TEXT])
