/**
 * Lays the regions of a timeline out on tracks. On a track, regions nest or follow each other. Where fibers that share a stream
 * interleave, their regions do neither, so the stream has several tracks.
 */
import * as Duration from "effect/Duration"
import { invalidArgument } from "../../CudaError.ts"

/** The part of a region that pictures need. */
export interface DrawnRegion {
  readonly name: string
  readonly deviceIndex: number
  readonly streamId: number
  readonly streamName?: string | undefined
  readonly start: Duration.Duration
  readonly duration: Duration.Duration
  readonly attributes: Attributes
}

export type Attributes = Readonly<Record<string, string | number | boolean>>

/** The part of a timeline that pictures need. */
export interface DrawnTimeline {
  readonly regions: ReadonlyArray<DrawnRegion>
  readonly devices: ReadonlyArray<{ readonly index: number; readonly name: string }>
}

/** A region on a track, in milliseconds. Within the precision of the measurement, it is cut to fit the region around it. */
export interface Bar {
  readonly region: DrawnRegion
  readonly start: number
  readonly end: number
  /** The number of regions around it. */
  readonly depth: number
}

export interface Track {
  readonly deviceIndex: number
  /** The name of the stream, with a number from the second track on. */
  readonly name: string
  /** In order of their start. */
  readonly bars: ReadonlyArray<Bar>
  /** The largest number of nested bars. */
  readonly height: number
}

/** The label of a device, even if the timeline does not list it: its regions may come from elsewhere. */
export const deviceLabel = ({ devices }: DrawnTimeline, index: number): string => {
  const device = devices.find((device) => device.index === index)
  return device === undefined ? `GPU ${index}` : `GPU ${index}: ${device.name}`
}

/** The tracks in order of device, stream and number. Throws a `CudaError` for regions that have no place on a time axis. */
export const layTracks = (operation: string, { regions }: DrawnTimeline): ReadonlyArray<Track> => {
  for (const region of regions) {
    if (isMeasurable(region.start) && isMeasurable(region.duration)) continue
    throw invalidArgument(operation, "regions", region, "regions whose start and duration are less than 10^12 seconds")
  }
  const streams = new Map<string, Array<DrawnRegion>>()
  for (const region of regions) {
    const key = `${region.deviceIndex}/${region.streamId}`
    const known = streams.get(key)
    if (known === undefined) streams.set(key, [region])
    else known.push(region)
  }
  return Array.from(streams.values())
    .sort(([a], [b]) => a!.deviceIndex - b!.deviceIndex || a!.streamId - b!.streamId)
    .flatMap(layStream)
}

/** In seconds: 30,000 years. Far beyond that, numbers can no longer distinguish the start of a region from its end. */
const mostMillis = 1e15

const isMeasurable = (time: Duration.Duration): boolean => Math.abs(Duration.toMillis(time)) < mostMillis

/** An elapsed time has 24 bits. */
const relativeError = 2 ** -23
/** Milliseconds. */
const resolution = 1e-3

const layStream = (regions: ReadonlyArray<DrawnRegion>): ReadonlyArray<Track> => {
  const bars = regions.map((region) => {
    const [start, millis] = [Duration.toMillis(region.start), Duration.toMillis(region.duration)]
    const slack = relativeError * millis
    return { region, start, end: start + millis, slack, depth: 0 }
  })
  // A long region comes before one in it even when its start was measured a little later.
  bars.sort((a, b) => (a.start - a.slack) - (b.start - b.slack) || b.end - a.end)
  const builders: Array<TrackBuilder> = []
  const places = new Places()
  for (const bar of bars) {
    const slack = resolution + bar.slack
    let track = places.find(bar.start + slack, bar.end - slack)
    // A track whose bars have ended may refuse this one because of the bar around them; the next search then skips it.
    while (track < builders.length && !builders[track]!.add(bar, slack)) {
      places.set(track, builders[track]!.innermostEnd)
      track = places.find(bar.start + slack, bar.end - slack)
    }
    if (track >= builders.length) {
      track = builders.push(new TrackBuilder()) - 1
      builders[track]!.add(bar, slack)
    }
    places.set(track, builders[track]!.innermostEnd)
  }
  const { deviceIndex, streamId, streamName } = regions[0]!
  const name = streamName ?? (streamId === 0 ? "default stream" : `stream ${streamId}`)
  return builders.map(({ bars, height }, index) => ({
    deviceIndex,
    name: index === 0 ? name : `${name} (${index + 1})`,
    bars,
    height
  }))
}

class TrackBuilder {
  readonly bars: Array<Bar> = []
  height = 0
  readonly #open: Array<Bar> = []
  /** By depth: where the last bar ended. */
  readonly #ends: Array<number> = []

  /** Where the innermost open bar ends. */
  get innermostEnd(): number {
    return this.#open.at(-1)?.end ?? Infinity
  }

  /** Adds a bar that starts after all others, unless it would stick out of one. */
  add({ end, region, start }: Bar, slack: number): boolean {
    while (this.#open.length > 0 && this.#open.at(-1)!.end <= start + slack) this.#open.pop()
    const outer = this.#open.at(-1)
    if (outer !== undefined && end - slack > outer.end) return false
    const depth = this.#open.length
    const from = Math.max(start, this.#ends[depth] ?? start, outer?.start ?? start)
    const bar = { region, start: from, end: Math.max(from, Math.min(end, outer?.end ?? end)), depth }
    this.#open.push(bar)
    this.#ends[depth] = bar.end
    this.bars.push(bar)
    this.height = Math.max(this.height, depth + 1)
    return true
  }
}

/**
 * Finds the first track that may take a bar, without asking each of them: interleaved fibers can make as many tracks as there are
 * regions. A tree over the ends of the innermost bars.
 */
class Places {
  /** A power of two. The children of node `n` are `2n` and `2n + 1`; the second half of the nodes are the tracks. */
  #size = 1
  /** The earliest and the latest end below each node. */
  #earliest = new Float64Array(2).fill(Infinity)
  #latest = new Float64Array(2).fill(-Infinity)

  set(track: number, end: number): void {
    while (track >= this.#size) this.#grow()
    let node = track + this.#size
    this.#earliest[node] = this.#latest[node] = end
    for (node >>= 1; node > 0; node >>= 1) this.#update(node)
  }

  /** The first track whose innermost bar has ended by one time or continues until another, or else `Infinity`. */
  find(endedBy: number, until: number): number {
    const fits = (node: number) => this.#earliest[node]! <= endedBy || this.#latest[node]! >= until
    if (!fits(1)) return Infinity
    let node = 1
    while (node < this.#size) node = fits(2 * node) ? 2 * node : 2 * node + 1
    return node - this.#size
  }

  #update(node: number): void {
    this.#earliest[node] = Math.min(this.#earliest[2 * node]!, this.#earliest[2 * node + 1]!)
    this.#latest[node] = Math.max(this.#latest[2 * node]!, this.#latest[2 * node + 1]!)
  }

  #grow(): void {
    const size = 2 * this.#size
    const earliest = new Float64Array(2 * size).fill(Infinity)
    const latest = new Float64Array(2 * size).fill(-Infinity)
    earliest.set(this.#earliest.subarray(this.#size), size)
    latest.set(this.#latest.subarray(this.#size), size)
    this.#size = size
    this.#earliest = earliest
    this.#latest = latest
    for (let node = size - 1; node > 0; node--) this.#update(node)
  }
}
