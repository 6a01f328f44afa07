/**
 * A timeline as a picture. Greys and fills are readable on white and on dark, since an image does not know what it is on.
 */
import * as Duration from "effect/Duration"
import { deviceLabel, layTracks } from "./tracks.ts"
import type { Bar, DrawnRegion, DrawnTimeline, Track } from "./tracks.ts"

const margin = 16
const gutter = 130
const rowHeight = 20
const trackGap = 8
const headingHeight = 28
const axisHeight = 24
/** Pixels of a character, about. */
const characterWidth = 6.4
/** Pixels between two ticks, at least. */
const tickDistance = 90

const grey = "#7b828c"
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

/** What is drawn where. */
interface Frame {
  readonly from: number
  readonly to: number
  readonly right: number
  readonly x: (millis: number) => number
  readonly fillOf: (name: string) => string
}

export const renderSvg = (
  timeline: DrawnTimeline,
  { title, width = 1000 }: { readonly title?: string | undefined; readonly width?: number | undefined }
): string => {
  const tracks = layTracks(timeline)
  const frame = makeFrame(tracks, width)
  const parts: Array<string> = []
  let y = margin
  if (title !== undefined) {
    y += 14
    parts.push(text(margin, y, title, ` font-size="14" font-weight="600"`))
    y += 10
  }
  const axisY = y + axisHeight
  y = axisY
  for (const [index, track] of tracks.entries()) {
    if (index === 0 || tracks[index - 1]!.deviceIndex !== track.deviceIndex) {
      parts.push(text(margin, y + 19, deviceLabel(timeline, track.deviceIndex), ` font-weight="600"`))
      y += headingHeight
    }
    parts.push(text(margin, y + 14, track.name), ...drawBars(track, frame, y))
    y += track.height * rowHeight + trackGap
  }
  if (tracks.length === 0) parts.push(text(margin, y + 19, "no regions"))
  else parts.unshift(...drawAxis(frame, axisY, y))
  const height = Math.max(y, axisY + headingHeight) + margin - trackGap
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`
  const font = `font-family="system-ui, sans-serif" font-size="11" fill="${grey}"`
  return [`<svg xmlns="http://www.w3.org/2000/svg" ${size} ${font}>`, ...parts, "</svg>", ""].join("\n")
}

const makeFrame = (tracks: ReadonlyArray<Track>, width: number): Frame => {
  let [from, to] = [Infinity, -Infinity]
  const colours = new Map<string, string>()
  for (const { bars } of tracks) {
    for (const { end, region, start } of bars) {
      from = Math.min(from, start)
      to = Math.max(to, end)
      if (!colours.has(region.name)) colours.set(region.name, fills[colours.size % fills.length]!)
    }
  }
  const right = Math.max(width - margin, gutter + 1)
  const scale = (right - gutter) / Math.max(to - from, 1e-6)
  return { from, to, right, x: (millis) => gutter + (millis - from) * scale, fillOf: (name) => colours.get(name)! }
}

/** Pixels by which a bar must end after the one before to be drawn: what nobody could see would only fill the file. */
const visible = 0.1

const drawBars = ({ bars }: Track, frame: Frame, top: number): ReadonlyArray<string> => {
  const parts: Array<string> = []
  const drawnTo: Array<number> = []
  for (const bar of bars) {
    const x = frame.x(bar.start)
    const width = Math.max(frame.x(bar.end) - x, 0.5)
    if (x + width < (drawnTo[bar.depth] ?? -Infinity) + visible) continue
    drawnTo[bar.depth] = x + width
    parts.push(drawBar(bar, { x, y: top + bar.depth * rowHeight, width, fill: frame.fillOf(bar.region.name) }))
  }
  return parts
}

const drawBar = (
  { region }: Bar,
  { fill, width, x, y }: { readonly x: number; readonly y: number; readonly width: number; readonly fill: string }
): string => {
  const place = `x="${pixels(x)}" y="${y}" width="${pixels(width)}" height="${rowHeight - 2}" rx="${width < 6 ? 0 : 2}"`
  const isLabelled = Array.from(region.name).length * characterWidth + 8 <= width
  const label = isLabelled ? text(x + 4, y + 13, region.name, ` fill="${ink}"`) : ""
  return `<g><title>${escape(describe(region))}</title><rect ${place} fill="${fill}"/>${label}</g>`
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
  for (let tick = Math.ceil(from / step - 1e-9); tick * step <= to + step * 1e-9; tick++) {
    const at = pixels(x(tick * step))
    const label = `${(tick * step / unit.millis).toFixed(decimals)} ${unit.name}`
    parts.push(`<line x1="${at}" y1="${top}" x2="${at}" y2="${bottom}" stroke="${grey}" stroke-opacity="0.3"/>`)
    parts.push(text(at, top - 6, label, ` text-anchor="middle"`))
  }
  return parts
}

/** The least of 1, 2 and 5 times a power of ten that makes so many steps at most. */
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

/** The largest unit that is not above a time. */
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

/** Characters that XML cannot have at all become the sign for that. */
const escape = (content: string): string =>
  content
    // oxlint-disable-next-line eslint/no-control-regex
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|\p{Surrogate}/gu, "\ufffd")
    .replace(/[&<>"']/g, (character) => entities[character]!)
