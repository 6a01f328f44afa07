/**
 * Two runs beside each other: what ran on which stream, in which order, as text and as a picture. Times are left out, because only the
 * order matters: each column is the end of an operation.
 */
import type { Ran } from "./Director.ts"
import { hostLane } from "./holds.ts"

/** The part of a run that drawings need. */
export interface Drawn {
  readonly title: string
  readonly ran: ReadonlyArray<Ran>
}

/** Columns before and after each work that matters. */
const around = 2

/** With no more columns than this, all are drawn. */
const fewColumns = 10

/** The name of an operation without what is common to all. */
const short = (label: string): string => label.replace(/^Cuda\w+\.launch of /, "").replace(/^Cuda\w+\./, "")

const nameOfLane = (lane: string): string => {
  if (lane === hostLane) return "host"
  const [id, device] = lane.split("@")
  return device === undefined ? `stream ${id}` : `stream ${id} of device ${device}`
}

/** The columns that are drawn: those of works that matter, and around them. Undefined stands for columns left out. */
const columnsOf = (ran: ReadonlyArray<Ran>, matters: ReadonlySet<string>): ReadonlyArray<Ran | undefined> => {
  if (ran.length <= fewColumns) return ran
  const places = ran.flatMap(({ work }, index) => matters.has(work) || matters.has(unitOf(work)) ? [index] : [])
  const columns: Array<Ran | undefined> = []
  for (const [index, one] of ran.entries()) {
    const isNear = places.length === 0 ? index < fewColumns : places.some((place) => Math.abs(place - index) <= around)
    if (isNear) columns.push(one)
    else if (columns.at(-1) !== undefined || columns.length === 0) columns.push(undefined)
  }
  return columns
}

const unitOf = (work: string): string => work.split("/")[0]!

const lanesOf = (runs: ReadonlyArray<ReadonlyArray<Ran | undefined>>): ReadonlyArray<string> => {
  const lanes = new Set(runs.flat().flatMap((one) => one === undefined ? [] : [one.lane]))
  return [...lanes].toSorted((a, b) => Number(b === hostLane) - Number(a === hostLane) || parseInt(a) - parseInt(b))
}

/** Draws runs as text. `matters` are the works to show in long runs. */
export const drawText = (runs: ReadonlyArray<Drawn>, matters: ReadonlySet<string>): ReadonlyArray<string> => {
  const all = runs.map(({ ran }) => columnsOf(ran, matters))
  const lanes = lanesOf(all)
  const width = Math.max(0, ...lanes.map((lane) => nameOfLane(lane).length))
  return runs.flatMap(({ title }, index) => [
    `${title}:`,
    ...lanes.map((lane) => {
      const cells = all[index]!.map((one) => {
        if (one === undefined) return "..."
        const text = `${short(one.label)} ${one.work}`
        return one.lane === lane ? text : " ".repeat(text.length)
      })
      return `  ${nameOfLane(lane).padEnd(width)} | ${cells.join(" | ")}`.trimEnd()
    })
  ])
}

const gutter = 130
const cellWidth = 120
const rowHeight = 26
const ink = "#14181d"
const grey = "#7b828c"
const plainFill = "#93a4b8"
const heldFill = "#f0a04b"

const escape = (text: string): string => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;")

/** Draws runs as a picture. Works that matter have another colour. */
export const drawSvg = (runs: ReadonlyArray<Drawn>, matters: ReadonlySet<string>): string => {
  const all = runs.map(({ ran }) => columnsOf(ran, matters))
  const lanes = lanesOf(all)
  const parts: Array<string> = []
  let y = 16
  for (const [index, { title }] of runs.entries()) {
    parts.push(`<text x="16" y="${y + 14}" font-weight="600">${escape(title)}</text>`)
    y += 24
    for (const lane of lanes) {
      parts.push(`<text x="16" y="${y + 16}">${escape(nameOfLane(lane))}</text>`)
      parts.push(...all[index]!.flatMap((one, column) => one?.lane === lane ? [drawCell(one, column, y, matters)] : []))
      y += rowHeight
    }
    y += 16
  }
  const width = gutter + cellWidth * Math.max(1, ...all.map(({ length }) => length)) + 16
  const size = `width="${width}" height="${y}" viewBox="0 0 ${width} ${y}"`
  const font = `font-family="system-ui, sans-serif" font-size="11" fill="${grey}"`
  return [`<svg xmlns="http://www.w3.org/2000/svg" ${size} ${font}>`, ...parts, "</svg>", ""].join("\n")
}

const drawCell = ({ label, work }: Ran, column: number, y: number, matters: ReadonlySet<string>): string => {
  const x = gutter + column * cellWidth
  const fill = matters.has(work) || matters.has(unitOf(work)) ? heldFill : plainFill
  const text = `${short(label)} ${work}`
  const shown = text.length > 19 ? `${text.slice(0, 18)}…` : text
  return `<g><title>${escape(`${label} ${work}`)}</title>` +
    `<rect x="${x}" y="${y + 2}" width="${cellWidth - 4}" height="${rowHeight - 6}" rx="2" fill="${fill}"/>` +
    `<text x="${x + 4}" y="${y + 16}" fill="${ink}">${escape(shown)}</text></g>`
}
