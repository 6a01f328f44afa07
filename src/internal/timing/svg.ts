/**
 * A timeline as a picture, with a background of its own, light or dark as the viewer prefers.
 */
import * as Duration from "effect/Duration"
import { invalidArgument } from "../../CudaError.ts"
import { deviceLabel, layTracks } from "./tracks.ts"
import type { Bar, DrawnRegion, DrawnTimeline, Track } from "./tracks.ts"

const margin = 16
const gutter = 150
const rowHeight = 20
/** The space below nested bars, inside the bar around them. */
const nestGap = 3
const trackGap = 10
const headingHeight = 28
const axisHeight = 24
const legendRow = 18
const swatch = 10
/** Approximate widths of characters in pixels, of a wide font: the viewer's is not known. */
const characterWidth = 6.9
const narrowWidth = 4
const wideWidth = 11
/** The least distance between two ticks in pixels. */
const tickDistance = 90

/** Dark on the fills, which are the same on light and dark. */
const ink = "#14181d"
const fills = [
  "#6ea8dc",
  "#f0a04b",
  "#7dbb6c",
  "#e57f84",
  "#b493d6",
  "#d9b44a",
  "#5fbdb5",
  "#e08fc0",
  "#a8a05c",
  "#93a4b8",
  "#c98d6b",
  "#8f9ae0"
]

/** With more tracks than these, lines between them would only fill the file. */
const mostSeparated = 200
/** More names than these would fill the picture, and share colors. */
const mostInLegend = 24

interface Palette {
  readonly back: string
  readonly ink: string
  readonly dim: string
  readonly rule: string
}

const light: Palette = { back: "#ffffff", ink, dim: "#59616b", rule: "#d9dde2" }
const dark: Palette = { back: "#0f1216", ink: "#e8eaed", dim: "#9aa3ad", rule: "#31363d" }

const rulesOf = ({ back, dim, ink, rule }: Palette): string =>
  `.back{fill:${back}}.ink{fill:${ink}}.dim{fill:${dim}}.rule{stroke:${rule}}`

/** The colors of a picture; `auto` is those of the viewer's setting. */
export type Theme = "auto" | "light" | "dark"

const styles: Readonly<Record<Theme, string>> = {
  auto: `${rulesOf(light)}@media (prefers-color-scheme:dark){${rulesOf(dark)}}`,
  light: rulesOf(light),
  dark: rulesOf(dark)
}

/** Where and how bars are drawn. */
interface Frame {
  readonly from: number
  readonly to: number
  readonly right: number
  readonly x: (millis: number) => number
  readonly fillOf: (name: string) => string
  /** In the order in which they first appear. */
  readonly names: ReadonlyArray<string>
}

/** The axis has a tick every 90 pixels. */
const mostWidth = 100_000

interface Options {
  readonly title?: string | undefined
  readonly width?: number | undefined
  readonly theme?: Theme | undefined
}

/** Throws a `CudaError` for options or for regions that cannot be drawn. */
export const renderSvg = (
  operation: string,
  timeline: DrawnTimeline,
  { theme = "auto", title, width = 1000 }: Options
): string => {
  if (!(width >= 1 && width <= mostWidth)) {
    throw invalidArgument(operation, "width", width, `a number of pixels from 1 to ${mostWidth}`)
  }
  if (!Object.hasOwn(styles, theme)) throw invalidArgument(operation, "theme", theme, `"auto", "light" or "dark"`)
  const tracks = layTracks(operation, timeline)
  const frame = makeFrame(tracks, width)
  const parts: Array<string> = []
  let y = margin
  if (title !== undefined) {
    y += 14
    parts.push(text(margin, y, title, ` class="ink" font-size="14" font-weight="600"`))
    y += 10
  }
  const axisY = y + axisHeight
  y = axisY + 4
  for (const [index, track] of tracks.entries()) {
    if (index === 0 || tracks[index - 1]!.deviceIndex !== track.deviceIndex) {
      parts.push(text(margin, y + 15, deviceLabel(timeline, track.deviceIndex), ` class="ink" font-weight="600"`))
      y += headingHeight - 4
    } else if (tracks.length <= mostSeparated) {
      const at = y - trackGap / 2
      parts.push(`<line x1="${margin}" y1="${at}" x2="${frame.right}" y2="${at}" class="rule" stroke-dasharray="2 3"/>`)
    }
    parts.push(text(margin, y + 14, shorten(track.name, gutter - margin - 8), ` class="dim"`))
    drawBars(parts, track, frame, y)
    y += heightOf(track.height) + trackGap
  }
  if (tracks.length === 0) parts.push(text(margin, y + 15, "no regions", ` class="dim"`))
  else {
    parts.unshift(...drawAxis(frame, axisY, y - 4))
    y = drawLegend(parts, frame, y + 8)
  }
  const height = Math.max(y, axisY + headingHeight) + margin - trackGap
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`
  const font = `font-family="system-ui, sans-serif" font-size="11"`
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} ${font}>`,
    `<style>${styles[theme]}</style>`,
    `<rect width="${width}" height="${height}" class="back"/>`,
    ...parts,
    "</svg>",
    ""
  ].join("\n")
}

const makeFrame = (tracks: ReadonlyArray<Track>, width: number): Frame => {
  let [first, to] = [Infinity, -Infinity]
  const colors = new Map<string, string>()
  for (const { bars } of tracks) {
    for (const { end, region, start } of bars) {
      first = Math.min(first, start)
      to = Math.max(to, end)
      if (!colors.has(region.name)) colors.set(region.name, fills[colors.size % fills.length]!)
    }
  }
  const from = first > 0 && first <= (to - first) * mostBefore ? 0 : first
  const right = Math.max(width - margin, gutter + 1)
  const scale = (right - gutter) / Math.max(to - from, 1e-6)
  return {
    from,
    to,
    right,
    x: (millis) => gutter + (millis - from) * scale,
    fillOf: (name) => colors.get(name)!,
    names: [...colors.keys()]
  }
}

/** The axis begins at zero if that is not far before the first region, compared with what follows. */
const mostBefore = 0.5

/** The height of a bar with some levels of bars, itself included. */
const heightOf = (levels: number): number => levels * rowHeight + (levels - 1) * nestGap

/** A bar is drawn only if it ends this many pixels after the one before: invisible bars would only fill the file. */
const visible = 0.1

const drawBars = (parts: Array<string>, { bars }: Track, frame: Frame, top: number): void => {
  const drawnTo: Array<number> = []
  const levels = levelsOf(bars)
  for (const [index, bar] of bars.entries()) {
    const x = frame.x(bar.start)
    const width = Math.max(frame.x(bar.end) - x, 0.5)
    if (x + width < (drawnTo[bar.depth] ?? -Infinity) + visible) continue
    drawnTo[bar.depth] = x + width
    const [y, height] = [top + bar.depth * rowHeight, heightOf(levels[index]!) - 2]
    parts.push(drawBar(bar, { x, y, width, height, fill: frame.fillOf(bar.region.name) }))
  }
}

/** The levels of bars in each bar, itself included. Bars come after those around them. */
const levelsOf = (bars: ReadonlyArray<Bar>): ReadonlyArray<number> => {
  const levels = bars.map(() => 1)
  const open: Array<number> = []
  for (const [index, { depth }] of bars.entries()) {
    open.length = depth
    open.push(index)
    for (const [level, around] of open.entries()) levels[around] = Math.max(levels[around]!, depth - level + 1)
  }
  return levels
}

interface Box {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
  readonly fill: string
}

/** A bar that holds others is a frame around them, so that they can be told from it. */
const drawBar = ({ region }: Bar, { fill, height, width, x, y }: Box): string => {
  const isFrame = height > rowHeight
  const corner = width < 6 ? 0 : 2
  const place = `x="${pixels(x)}" y="${y}" width="${pixels(width)}" height="${height}" rx="${corner}"`
  const look = isFrame ? ` fill-opacity="0.28" stroke="${fill}"` : ""
  const name = shorten(region.name, width - 8)
  const label = name === "" ? "" : text(x + 4, y + 13, name, isFrame ? ` class="ink"` : ` fill="${ink}"`)
  return `<g><title>${escape(describe(region))}</title><rect ${place} fill="${fill}"${look}/>${label}</g>`
}

const widthOf = (character: string): number => {
  if ("mwMW…@%".includes(character)) return wideWidth
  return "fijlrtI.,:;!|'()[] ".includes(character) ? narrowWidth : characterWidth
}

const textWidth = (content: string): number => {
  let width = 0
  for (const character of content) width += widthOf(character)
  return width
}

/** The least width of a shortened name that can be recognized. */
const leastWidth = 3 * characterWidth + wideWidth

/** Text that fits into some pixels: cut, with an ellipsis, or empty where too little would be left to recognize. */
const shorten = (content: string, width: number): string => {
  if (width < narrowWidth) return ""
  let [used, cut, length] = [0, 0, 0]
  for (const character of content) {
    used += widthOf(character)
    if (used <= width - wideWidth) cut = length + character.length
    if (used > width) return width < leastWidth ? "" : `${content.slice(0, cut).trimEnd()}…`
    length += character.length
  }
  return content
}

/** Draws the names with their colors below the tracks, and returns where they end. */
const drawLegend = (parts: Array<string>, { fillOf, names, right }: Frame, top: number): number => {
  const entryWidth = (name: string) => swatch + 6 + textWidth(name) + 14
  let [x, y] = [margin, top]
  const place = (width: number): number => {
    if (x > margin && x + width > right) [x, y] = [margin, y + legendRow]
    const at = x
    x += width
    return at
  }
  for (const full of names.slice(0, mostInLegend)) {
    const name = shorten(full, Math.min(240, right - margin - swatch - 20)) || full.slice(0, 1)
    const at = place(entryWidth(name))
    parts.push(`<rect x="${pixels(at)}" y="${y}" width="${swatch}" height="${swatch}" rx="2" fill="${fillOf(full)}"/>`)
    parts.push(text(at + swatch + 6, y + 9, name, ` class="ink"`))
  }
  if (names.length > mostInLegend) {
    const more = `and ${names.length - mostInLegend} more`
    parts.push(text(place(entryWidth(more)), y + 9, more, ` class="dim"`))
  }
  return y + legendRow + trackGap
}

const describe = ({ attributes, duration, name, start }: DrawnRegion): string =>
  [
    name,
    `${formatMillis(Duration.toMillis(duration))}, from ${formatMillis(Duration.toMillis(start))}`,
    ...Object.entries(attributes).map(([key, value]) => `${key}: ${value}`)
  ].join("\n")

const drawAxis = ({ from, right, to, x }: Frame, top: number, bottom: number): ReadonlyArray<string> => {
  const step = tickStep(to - from, (right - gutter) / tickDistance)
  const unit = unitOf(Math.max(step, to / 1000))
  const decimals = Math.max(0, -Math.floor(Math.log10(step / unit.millis) + 1e-9))
  const parts: Array<string> = []
  const first = Math.ceil(from / step - 1e-9)
  // Counted from 0: far from the beginning of the timeline, ticks are too large to add 1 to.
  for (let index = 0; index <= (to - first * step) / step + 1e-9; index++) {
    const time = (first + index) * step
    const at = pixels(x(time))
    const label = `${(time / unit.millis).toFixed(decimals)} ${unit.name}`
    parts.push(`<line x1="${at}" y1="${top}" x2="${at}" y2="${bottom}" class="rule"/>`)
    parts.push(text(at, top - 6, label, ` class="dim" text-anchor="middle"`))
  }
  return parts
}

/** The least of 1, 2 and 5 times a power of ten that divides a span into at most a given number of steps. */
const tickStep = (span: number, most: number): number => {
  const least = Math.max(span, 1e-6) / Math.max(most, 1)
  const power = 10 ** Math.floor(Math.log10(least))
  return power * ([1, 2, 5].find((factor) => factor * power >= least) ?? 10)
}

const units = [
  { name: "s", millis: 1000 },
  { name: "ms", millis: 1 },
  { name: "µs", millis: 1e-3 },
  { name: "ns", millis: 1e-6 }
]

/** The largest unit that does not exceed a time. */
const unitOf = (millis: number) => units.find((unit) => unit.millis <= millis * (1 + 1e-9)) ?? units.at(-1)!

const formatMillis = (millis: number): string => {
  const { millis: size, name } = unitOf(millis)
  return `${Number((millis / size).toFixed(3))} ${name}`
}

const pixels = (value: number): number => Math.round(value * 100) / 100

const text = (x: number, y: number, content: string, attributes = ""): string =>
  `<text x="${pixels(x)}" y="${y}"${attributes}>${escape(content)}</text>`

const entities: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  "\"": "&quot;",
  "'": "&#39;"
}

/** Characters that XML does not allow become U+FFFD, the replacement character. */
const escape = (content: string): string =>
  content
    // oxlint-disable-next-line eslint/no-control-regex
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|\p{Surrogate}/gu, "\ufffd")
    .replace(/[&<>"']/g, (character) => entities[character]!)
