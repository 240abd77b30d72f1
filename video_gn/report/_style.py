"""The page's style sheet: light and dark by the reader's own setting, and a plain form for paper."""

from __future__ import annotations

# Line colours: Okabe and Ito's palette, which the colour-blind tell apart, darkened or lightened
# until each has a contrast of at least 3 against its background.
CSS = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2128; --soft: #5b6470; --line: #d8dee4; --panel: #f6f8fa;
  --c1: #0067a5; --c2: #c44f00; --c3: #00805c; --c4: #9a4f86; --right: #0067a5; --wrong: #d55e00; --strong: #fff;
  --warn-back: #fff4e0; --warn-line: #d08700; }
@media (prefers-color-scheme: dark) {
  :root { --back: #12161b; --text: #e4e8ec; --soft: #9aa5b1; --line: #313942; --panel: #1a2027;
    --c1: #56b4e9; --c2: #f0904a; --c3: #2cc295; --c4: #d79bc4; --right: #56b4e9; --wrong: #f0904a; --strong: #0b0e11;
    --warn-back: #2c2415; --warn-line: #b98222; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1140px; padding: 24px 20px 60px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 6px 0 10px; max-width: 80ch; }
.note, .sub { color: var(--soft); font-size: 13.5px; }
.sub { margin: 0 0 14px; overflow-wrap: anywhere; max-width: none; }
.warning { background: var(--warn-back); border-left: 4px solid var(--warn-line); padding: 8px 12px; max-width: none; }
nav { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13.5px; margin: 0 0 18px; }
a { color: var(--c1); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px; margin: 0 0 14px; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px 11px; }
.tile span { display: block; font-size: 13px; color: var(--soft); }
.tile b { display: block; font-size: 27px; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px 8px; min-width: 0; }
figcaption { font-size: 13.5px; display: flex; flex-wrap: wrap; gap: 0 18px; justify-content: space-between;
  margin-bottom: 6px; }
.legend { display: inline-flex; flex-wrap: wrap; gap: 0 14px; color: var(--soft); }
.legend b { color: var(--text); font-weight: 600; font-variant-numeric: tabular-nums; }
.swatch { width: 22px; height: 10px; margin-right: 5px; vertical-align: 0; }
.full { grid-column: 1 / -1; overflow-x: auto; } .full > svg { min-width: 640px; }
.pair { display: flex; flex-wrap: wrap; gap: 0 14px; align-items: flex-start; }
.pair > .scroll { flex: 1 1 380px; }
.pair > .scroll:first-child { flex: 0 1 auto; max-height: none; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg .label { font-size: 11.5px; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); fill: none; }
.c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.line path, .dots path { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.faint path { fill: none; stroke: var(--c); stroke-width: 1; opacity: .35; stroke-linejoin: round; }
.faint path[stroke-dasharray] { opacity: .8; }
circle { fill: var(--c); stroke: var(--back); stroke-width: 1; }
.scroll { overflow: auto; max-height: 620px; max-width: 100%; border: 1px solid var(--line); border-radius: 8px;
  margin: 8px 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { position: sticky; top: 0; background: var(--panel); text-align: left; font-weight: 600; white-space: nowrap;
  z-index: 1; }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
tbody tr:hover { background: var(--panel); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
bdi { overflow-wrap: anywhere; }
.path { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.bar { display: inline-block; width: 90px; height: 9px; margin-right: 8px; background: var(--line); border-radius: 2px;
  overflow: hidden; }
.n b { display: inline-block; min-width: 52px; font-weight: inherit; }
.bar i { display: block; height: 100%; background: var(--c1); }
.matrix { display: block; margin: 4px; } .matrix .empty { fill: var(--panel); }
.matrix .line { stroke: var(--back); fill: none; } .nowrap { white-space: nowrap; }
.matrix .right { fill: var(--right); } .matrix .wrong { fill: var(--wrong); }
.matrix .count { pointer-events: none; font-size: 11px; } .matrix .small { font-size: 9px; }
.matrix .strong { fill: var(--strong); } .matrix .weak { fill: var(--text); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 20px; margin: 6px 0 12px; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; overflow: auto;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; max-height: 620px; margin: 8px 0 12px; }
details { margin: 8px 0; } summary { cursor: pointer; }
footer { margin-top: 44px; color: var(--soft); font-size: 13px; border-top: 1px solid var(--line); padding-top: 10px; }
@media (min-width: 860px) { dl { grid-template-columns: max-content 1fr max-content 1fr; } }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 6px; } }
@media print { .scroll, pre { max-height: none; overflow: visible; } nav { display: none; } body { max-width: none; }
  figure { break-inside: avoid; } }
"""
