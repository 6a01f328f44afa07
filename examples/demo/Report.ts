/**
 * The demo's report: figures of both runs, and a chart of when the three streams were busy. No Effect here.
 */
import type { CudaRuntime, CudaTiming } from "effect-cuda"
import * as Duration from "effect/Duration"
import type { Run } from "./Pipeline.ts"
import { describeCounts, formatChecksum } from "./Summary.ts"
import type { Summary } from "./Summary.ts"

export interface Results {
  readonly byteLength: number
  readonly slots: number
  readonly pipelined: Run
  readonly serial: Run
}

/** Describes the runtime and the device in one line. */
export const describeRuntime = ({ devices, driverVersion, kind }: CudaRuntime.CudaRuntimeService): string => {
  const cuda = `CUDA ${Math.floor(driverVersion / 1000)}.${Math.floor((driverVersion % 1000) / 10)}`
  return kind === "native"
    ? `native: ${devices[0]?.name}, driver for ${cuda}`
    : `simulated: ${devices[0]?.name}. Data really moves; times are those of a slow imaginary GPU`
}

/** The table of both runs, and the charts. */
export const report = (results: Results, columns: number): string => {
  const { byteLength, pipelined, serial, slots } = results
  const gained = Duration.toMillis(serial.wallTime) / Duration.toMillis(pipelined.wallTime)
  const first = { pipelined: firstChunks(pipelined), serial: firstChunks(serial) }
  const millis = endOf(first.pipelined)
  return [
    row("", "wall time", "GPU time", "bandwidth"),
    runRow("pipelined", byteLength, pipelined) + `   three streams, ${slots} chunks at a time`,
    runRow("serial", byteLength, serial) + "   one chunk at a time, step by step",
    `overlap    ${gained.toFixed(2)} × as fast as serial`,
    "",
    ...describeSummary(pipelined.summary),
    "",
    `The first chunks (${new Set(first.pipelined.map(({ chunk }) => chunk)).size}), pipelined:`,
    ...picture(first.pipelined, millis, columns),
    "",
    "The same period, serial:",
    ...picture(first.serial, millis, columns),
    "",
    `${byteLength.toLocaleString("en-US")} ${byteLength === 1 ? "byte" : "bytes"} came back unchanged in both runs.`,
    "In both runs, the kernels found the same CRC-32 and byte counts as the CPU."
  ].join("\n")
}

const row = (name: string, ...cells: ReadonlyArray<string>): string =>
  name.padEnd(9) + cells.map((cell) => cell.padStart(12)).join("")

const runRow = (name: string, byteLength: number, { timeline, wallTime }: Run): string => {
  const gpuTime = Duration.millis(endOf(operationsOf(timeline)))
  return row(name, formatTime(wallTime), formatTime(gpuTime), formatBandwidth(byteLength, wallTime))
}

const describeSummary = ({ checksum, counts }: Summary): ReadonlyArray<string> => {
  const { byte, entropy, share } = describeCounts(counts)
  const most = `0x${byte.toString(16).padStart(2, "0")} most often (${(share * 100).toFixed(1)} %)`
  return [`CRC-32     ${formatChecksum(checksum)}`, `bytes      ${most}, entropy ${entropy.toFixed(2)} bits per byte`]
}

/** The steps of a chunk: their names in the chart, and in the pipeline. */
const steps = [["upload", "upload"], ["stage", "work"], ["download", "download"]] as const

/** An operation on the GPU, with times in milliseconds since the first operation of its run. */
export interface Operation {
  readonly name: string
  readonly chunk: number
  readonly from: number
  readonly to: number
}

const operationsOf = ({ regions }: CudaTiming.Timeline): ReadonlyArray<Operation> =>
  regions.map(({ attributes, duration, name, start }) => {
    const from = Duration.toMillis(Duration.subtract(start, regions[0]!.start))
    return { name, chunk: Number(attributes["index"]), from, to: from + Duration.toMillis(duration) }
  })

/** Number of chunks in the chart. */
const picturedChunks = 12

const firstChunks = ({ timeline }: Run): ReadonlyArray<Operation> =>
  operationsOf(timeline).filter(({ chunk }) => chunk < picturedChunks)

const endOf = (operations: ReadonlyArray<Operation>): number =>
  operations.reduce((latest, { to }) => Math.max(latest, to), 0)

/** Three rows of blocks with alternating shades per chunk, above a time axis. */
export const picture = (
  operations: ReadonlyArray<Operation>,
  millis: number,
  columns: number
): ReadonlyArray<string> => {
  const width = Math.max(20, Math.min(100, columns - labelWidth - axisRoom))
  const rows = steps.map(([label, step]) => {
    const ofStep = operations.filter(({ name }) => name === step)
    return (label.padEnd(labelWidth) + drawRow(ofStep, millis, width)).trimEnd()
  })
  return [...rows, ...drawAxis(millis, width)]
}

const labelWidth = 10
/** Space for the last number of the axis. */
const axisRoom = 8

/** A cell shows the chunk that covers most of it. Operations shorter than a cell appear as a thin bar. */
const drawRow = (operations: ReadonlyArray<Operation>, millis: number, width: number): string => {
  const cell = millis / width
  return Array.from({ length: width }, (_, column) => {
    let most = 0
    let shown = " "
    for (const { chunk, from, to } of operations) {
      const covered = Math.min(to, (column + 1) * cell) - Math.max(from, column * cell)
      if (covered <= most) continue
      most = covered
      shown = covered < cell / 2 ? "▏" : chunk % 2 === 0 ? "█" : "▓"
    }
    return shown
  }).join("")
}

const drawAxis = (millis: number, width: number): ReadonlyArray<string> => {
  const step = niceStep(millis / (width / 12))
  const marks = Array.from({ length: Math.floor(millis / step) + 1 }, (_, index) => index * step)
  let line = ""
  let labels = ""
  for (const mark of marks) {
    const column = Math.min(width - 1, Math.round((mark / millis) * width))
    line = line.padEnd(column, "─") + "┬"
    labels = labels.padEnd(column) + formatMark(mark, step)
  }
  const indent = " ".repeat(labelWidth)
  return [indent + line.padEnd(width, "─"), `${indent}${labels} ms`]
}

/** Rounds up to 1, 2 or 5 times a power of ten. */
const niceStep = (least: number): number => {
  const power = 10 ** Math.floor(Math.log10(least))
  return power * ([1, 2, 5].find((factor) => factor * power >= least) ?? 10)
}

const formatMark = (mark: number, step: number): string =>
  mark.toFixed(Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)))

const formatTime = (time: Duration.Duration): string => {
  const millis = Duration.toMillis(time)
  return millis < 10_000 ? `${millis.toFixed(millis < 100 ? 2 : 0)} ms` : `${(millis / 1000).toFixed(1)} s`
}

const formatBandwidth = (byteLength: number, time: Duration.Duration): string => {
  const perSecond = byteLength / Duration.toSeconds(time)
  return perSecond < 1e9 ? `${(perSecond / 1e6).toFixed(1)} MB/s` : `${(perSecond / 1e9).toFixed(2)} GB/s`
}

export const formatBytes = (bytes: number): string => {
  const units = [bytes === 1 ? "byte" : "bytes", "KiB", "MiB", "GiB", "TiB"]
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(bytes) / 10)))
  return `${power === 0 ? bytes : (bytes / 1024 ** power).toFixed(1)} ${units[power]}`
}
