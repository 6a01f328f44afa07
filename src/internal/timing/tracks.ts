/**
 * How the regions of a timeline lie on tracks: those of one stream nest, or follow each other. Where fibers that share a
 * stream interleave, their regions do neither, and the stream has several tracks.
 */
import * as Duration from "effect/Duration"

/** A region, as far as pictures of it need it. */
export interface DrawnRegion {
  readonly name: string
  readonly deviceIndex: number
  readonly streamId: number
  readonly start: Duration.Duration
  readonly duration: Duration.Duration
  readonly attributes: Attributes
}

export type Attributes = Readonly<Record<string, string | number | boolean>>

/** A timeline, as far as pictures of it need it. */
export interface DrawnTimeline {
  readonly regions: ReadonlyArray<DrawnRegion>
  readonly devices: ReadonlyArray<{ readonly index: number; readonly name: string }>
}

/** A region on a track, in milliseconds: cut, within what measuring is exact to, so that it lies in the one around it. */
export interface Bar {
  readonly region: DrawnRegion
  readonly start: number
  readonly end: number
  /** Regions around it. */
  readonly depth: number
}

export interface Track {
  readonly deviceIndex: number
  /** The name of the stream, with a number from the second track on. */
  readonly name: string
  /** By their start. */
  readonly bars: ReadonlyArray<Bar>
  /** Bars on top of each other, at most. */
  readonly height: number
}

/** What a device is called: for those who take regions from elsewhere, without the timeline's list too. */
export const deviceLabel = ({ devices }: DrawnTimeline, index: number): string => {
  const device = devices.find((device) => device.index === index)
  return device === undefined ? `GPU ${index}` : `GPU ${index}: ${device.name}`
}

/** The tracks by device, stream and number. */
export const layTracks = ({ regions }: DrawnTimeline): ReadonlyArray<Track> => {
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
  for (const bar of bars) {
    if (builders.some((builder) => builder.add(bar, resolution + bar.slack))) continue
    const builder = new TrackBuilder()
    builder.add(bar, resolution)
    builders.push(builder)
  }
  const { deviceIndex, streamId } = regions[0]!
  const name = streamId === 0 ? "default stream" : `stream ${streamId}`
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

  /** Takes a bar that starts after all others, unless it would stick out of one. */
  add({ end, region, start }: Bar, slack: number): boolean {
    while (this.#open.length > 0 && this.#open.at(-1)!.end <= start + slack) this.#open.pop()
    const outer = this.#open.at(-1)
    if (outer !== undefined && end > outer.end + slack) return false
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
