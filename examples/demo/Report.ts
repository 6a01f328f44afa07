/**
 * What the demo prints: figures of both runs, and a picture of when the three streams were busy. No Effect here.
 */
import type { CudaRuntime } from "effect-cuda"
import * as Duration from "effect/Duration"
import type { ChunkTimes, Run, Span } from "./Pipeline.ts"

export interface Results {
  readonly byteLength: number
  readonly slots: number
  readonly pipelined: Run
  readonly serial: Run
}

/** The runtime and the device in one line. */
export const describeRuntime = ({ devices, driverVersion, kind }: CudaRuntime.CudaRuntimeService): string => {
  const cuda = `CUDA ${Math.floor(driverVersion / 1000)}.${Math.floor((driverVersion % 1000) / 10)}`
  return kind === "native"
    ? `native: ${devices[0]?.name}, driver for ${cuda}`
    : `simulated: ${devices[0]?.name}. Bytes really move; times are those of a slow imaginary GPU`
}

/** The table of both runs, and the pictures. */
export const report = (results: Results, columns: number): string => {
  const { byteLength, pipelined, serial, slots } = results
  const gained = Duration.toMillis(serial.wallTime) / Duration.toMillis(pipelined.wallTime)
  const window = windowOf(pipelined.firstChunks)
  return [
    row("", "wall time", "GPU time", "bandwidth"),
    runRow("pipelined", byteLength, pipelined) + `   three streams, ${slots} chunks at a time`,
    runRow("serial", byteLength, serial) + "   one stream, one chunk at a time",
    `overlap    ${gained.toFixed(2)} × the speed of serial`,
    "",
    `The first chunks (${pipelined.firstChunks.length}), pipelined:`,
    ...timeline(pipelined.firstChunks, window, columns),
    "",
    "The same stretch of time, serial:",
    ...timeline(serial.firstChunks, window, columns),
    "",
    `All ${byteLength.toLocaleString("en-US")} bytes came back, both times, as the file has them.`
  ].join("\n")
}

const row = (name: string, ...cells: ReadonlyArray<string>): string =>
  name.padEnd(9) + cells.map((cell) => cell.padStart(12)).join("")

const runRow = (name: string, byteLength: number, { gpuTime, wallTime }: Run): string =>
  row(name, formatTime(wallTime), formatTime(gpuTime), formatBandwidth(byteLength, wallTime))

/** Three rows of blocks, a shade per chunk in turn, over a time axis. */
export const timeline = (chunks: ReadonlyArray<ChunkTimes>, window: Span, columns: number): ReadonlyArray<string> => {
  const width = Math.max(20, Math.min(100, columns - labelWidth - axisRoom))
  const inOrder = Array.from(chunks).sort((one, other) => one.upload.from - other.upload.from)
  const rows = (["upload", "stage", "download"] as const).map((name) =>
    name.padEnd(labelWidth) + drawRow(inOrder.map((chunk) => chunk[name]), window, width)
  )
  return [...rows.map((line) => line.trimEnd()), ...drawAxis(window, width)]
}

const labelWidth = 10
/** For the end of the axis's last number. */
const axisRoom = 8

const windowOf = (chunks: ReadonlyArray<ChunkTimes>): Span => ({
  from: Math.min(...chunks.map(({ upload }) => upload.from)),
  to: Math.max(...chunks.map(({ download }) => download.to))
})

/** A cell shows the chunk that fills most of it; what is shorter than a cell still shows, as a thin bar. */
const drawRow = (spans: ReadonlyArray<Span>, window: Span, width: number): string => {
  const cell = (window.to - window.from) / width
  const origin = spans.length === 0 ? 0 : Math.min(window.from, spans[0]!.from)
  return Array.from({ length: width }, (_, column) => {
    const from = origin + column * cell
    let most = 0
    let shown = " "
    for (const [index, span] of spans.entries()) {
      const covered = Math.min(span.to, from + cell) - Math.max(span.from, from)
      if (covered <= most) continue
      most = covered
      shown = covered < cell / 2 ? "▏" : index % 2 === 0 ? "█" : "▓"
    }
    return shown
  }).join("")
}

const drawAxis = ({ from, to }: Span, width: number): ReadonlyArray<string> => {
  const step = niceStep((to - from) / (width / 12))
  const marks = Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, index) => index * step)
  let line = ""
  let labels = ""
  for (const mark of marks) {
    const column = Math.min(width - 1, Math.round((mark / (to - from)) * width))
    line = line.padEnd(column, "─") + "┬"
    labels = labels.padEnd(column) + formatMark(mark, step)
  }
  const indent = " ".repeat(labelWidth)
  return [indent + line.padEnd(width, "─"), `${indent}${labels} ms`]
}

/** 1, 2 or 5 times a power of ten, at least what is given. */
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
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(bytes) / 10)))
  return `${power === 0 ? bytes : (bytes / 1024 ** power).toFixed(1)} ${units[power]}`
}
