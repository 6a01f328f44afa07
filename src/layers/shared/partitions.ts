/**
 * Partitions of a device's multiprocessors: the shared operations, and the backend functions they use.
 *
 * The driver splits a device once, into groups of as few multiprocessors as it can and a rest. Partitions are made of these groups, so
 * that partitions that are made at different times never overlap.
 */
import * as Effect from "effect/Effect"
import { notReady, success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { PartitionOptions, PartitionRef, PartitionSize } from "../CudaRuntime.ts"
import type { PartitionOperations } from "../runtime/partitions.ts"
import { counted } from "../runtime/words.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseResource } from "./failures.ts"
import { refuseInside } from "./recordings.ts"
import { ownPartition } from "./resources.ts"
import type { PartitionResource } from "./resources.ts"
import { releaseStream } from "./streams.ts"
import { watchUsers } from "./waits.ts"

/** How the driver splits a device. */
export interface Split {
  /** The number of groups. */
  readonly groups: number
  /** The multiprocessors of each. */
  readonly groupSize: number
  /** The multiprocessors that are in no group. */
  readonly rest: number
}

/** A part of a split. */
export interface Share {
  /** The indices of its groups, in order. */
  readonly groups: ReadonlyArray<number>
  readonly hasRest: boolean
  readonly multiprocessors: number
}

export interface PartitionBackend {
  /** The split read by `readSplit`, the same for every call on a device. */
  readonly split: Split
  readonly readSplit: (deviceIndex: number) => number
  /** The partition made by `create`. */
  readonly created: PartitionResource | undefined
  /** True if `create` does not wait for an idle device. */
  readonly isKept: (deviceIndex: number, share: Share) => boolean
  readonly create: (deviceIndex: number, share: Share) => number
  readonly destroy: (partition: PartitionResource) => number
}

const makeOperation = "CudaPartition.make"
const releaseOperation = "CudaPartition.release"

export const partitionOperations = (core: Core): PartitionOperations => ({
  partitionCreate: (device, sizes, options = {}) =>
    core.onDevice(makeOperation, device, () => create(core, device, sizes, options)),
  partitionDestroy: (ref) =>
    Effect.uninterruptible(Effect.suspend(() => {
      const partition = ownPartition(ref)
      if (partition.owner !== core.backend) return refuseResource(releaseOperation, core.backend, partition)
      return partition.state === "live" ? destroy(core, partition) : Effect.void
    }))
})

/** What the partitions of a device have left. */
export class Shares {
  readonly split: Split
  readonly #free: Set<number>
  #hasRest = true
  constructor(split: Split) {
    this.split = split
    this.#free = new Set(Array.from({ length: split.groups }, (_, index) => index))
  }
  get left(): number {
    return this.#free.size * this.split.groupSize + (this.#hasRest ? this.split.rest : 0)
  }
  get all(): number {
    return this.split.groups * this.split.groupSize + this.split.rest
  }
  /** Takes at least this many multiprocessors: whole groups, and the rest only if these do not suffice. Undefined if too few are left. */
  take(size: PartitionSize): Share | undefined {
    const { groupSize, rest } = this.split
    const { left } = this
    if (left === 0 || (size !== "rest" && size > left)) return undefined
    const hasRest = this.#hasRest && (size === "rest" || size > this.#free.size * groupSize)
    const missing = size === "rest" ? left : size - (hasRest ? rest : 0)
    const groups = Array.from(this.#free).sort((a, b) => a - b).slice(0, Math.ceil(missing / groupSize))
    for (const group of groups) this.#free.delete(group)
    if (hasRest) this.#hasRest = false
    return { groups, hasRest, multiprocessors: groups.length * groupSize + (hasRest ? rest : 0) }
  }
  giveBack({ groups, hasRest }: Share): void {
    for (const group of groups) this.#free.add(group)
    if (hasRest) this.#hasRest = true
  }
}

const create = (
  core: Core,
  deviceIndex: number,
  sizes: ReadonlyArray<PartitionSize>,
  { onMade }: PartitionOptions
): Effect.Effect<ReadonlyArray<PartitionRef>, CudaError> => {
  const refused = refuseSizes(sizes) ?? (core.recordings === 0
    ? undefined
    : refuseInside(makeOperation, "partitions belong to no graph. Make them outside"))
  if (refused !== undefined) return refused
  const shares = sharesOf(core, deviceIndex)
  if (typeof shares === "number") return core.failOn(makeOperation, shares, deviceIndex, `device ${deviceIndex}`)
  const taken = takeAll(shares, sizes)
  if (!Array.isArray(taken)) return taken
  const made: Array<PartitionResource> = []
  let isGivenOut = false
  const undo = Effect.suspend(() => {
    for (const share of taken.slice(made.length)) shares.giveBack(share)
    return Effect.forEach(made, (partition) => Effect.ignore(destroy(core, partition)), { discard: true })
  })
  const call = (): number => core.closed ? success : makeAll(core, deviceIndex, taken, made)
  const subject = `${counted(sizes.length, "partition")} of device ${deviceIndex}`
  const result = Effect.suspend(() => {
    if (core.closed) return refuse(makeOperation, { _tag: "ResourceReleased", resource: "the runtime" })
    isGivenOut = onMade !== undefined
    onMade?.(made)
    return Effect.succeed(made)
  })
  return Effect.onError(
    Effect.andThen(whenIdle(core, deviceIndex, subject, taken, call), result),
    // A caller that knows them destroys them itself.
    () => isGivenOut ? Effect.void : undo
  )
}

const refuseSizes = (sizes: ReadonlyArray<PartitionSize>) => {
  const expected = "a list of integers above 0, and at most one \"rest\""
  if (!Array.isArray(sizes) || sizes.length === 0) return refuseArgument(makeOperation, "sizes", sizes, expected)
  for (const size of sizes) {
    if (size === "rest" || (Number.isSafeInteger(size) && size > 0)) continue
    return refuseArgument(makeOperation, "multiprocessors", size, "an integer above 0, or \"rest\"")
  }
  return sizes.filter((size) => size === "rest").length > 1
    ? refuseArgument(makeOperation, "sizes", sizes, expected)
    : undefined
}

const sharesOf = (core: Core, deviceIndex: number): Shares | number => {
  const known = core.shares.get(deviceIndex)
  if (known !== undefined) return known
  const status = core.backend.partitions.readSplit(deviceIndex)
  if (status !== success) return status
  const shares = new Shares(core.backend.partitions.split)
  core.shares.set(deviceIndex, shares)
  return shares
}

/** The shares of the partitions, where "rest" comes last. */
const takeAll = (shares: Shares, sizes: ReadonlyArray<PartitionSize>) => {
  const taken: Array<Share> = []
  const order = Array.from(sizes.keys()).sort((a, b) => Number(sizes[a] === "rest") - Number(sizes[b] === "rest"))
  for (const index of order) {
    const { all, left } = shares
    const share = shares.take(sizes[index]!)
    if (share !== undefined) {
      taken[index] = share
      continue
    }
    for (const other of taken) if (other !== undefined) shares.giveBack(other)
    const expected =
      `at most ${left}: ${all - left} of ${all} multiprocessors belong to other partitions, which have ` +
      `multiples of ${shares.split.groupSize}`
    return refuseArgument(makeOperation, "multiprocessors", sizes[index], expected)
  }
  return taken
}

/** Makes the partitions. Those that were made before one fails are in `made`. */
const makeAll = (
  core: Core,
  deviceIndex: number,
  taken: ReadonlyArray<Share>,
  made: Array<PartitionResource>
): number => {
  for (const share of taken) {
    const status = core.backend.partitions.create(deviceIndex, share)
    if (status !== success) return status
    const partition = core.backend.partitions.created!
    core.partitions.add(partition)
    made.push(partition)
  }
  return success
}

/** Makes a call that blocks in the driver until the device is idle, in a turn that finds it idle. */
const whenIdle = (
  core: Core,
  deviceIndex: number,
  subject: string,
  shares: ReadonlyArray<Share>,
  call: () => number
): Effect.Effect<void, CudaError> => {
  const { devices, partitions } = core.backend
  if (shares.every((share) => partitions.isKept(deviceIndex, share)) || devices.isIdle(deviceIndex)) {
    const status = call()
    return status === success ? Effect.void : core.failOn(makeOperation, status, deviceIndex, subject)
  }
  return core.wait(
    makeOperation,
    deviceIndex,
    subject,
    (onDone) => devices.watchIdle(deviceIndex, (status, stage) => onDone(status === success ? call() : status, stage))
  )
}

const destroy = (core: Core, partition: PartitionResource): Effect.Effect<void, CudaError> => {
  partition.state = "closing"
  const own = Array.from(core.streams).filter((stream) => stream.partition === partition)
  return Effect.forEach(own, (stream) => Effect.exit(releaseStream(core, stream)), { concurrency: "unbounded" }).pipe(
    Effect.flatMap((exits) =>
      Effect.andThen(
        Effect.exit(whenUnused(core, partition)),
        Effect.andThen(end(core, partition), Effect.forEach(exits, (exit) => exit, { discard: true }))
      )
    )
  )
}

/** Graphs with nodes in the partition may run on other streams. */
const whenUnused = (core: Core, partition: PartitionResource): Effect.Effect<void, CudaError> => {
  const { streams } = core.backend
  const isUsed = partition.pendingUsers.some((user) => streams.query(user) === notReady)
  if (!isUsed) return Effect.void
  return core.wait(releaseOperation, partition.deviceIndex, String(partition), watchUsers(streams, partition))
}

const end = (core: Core, partition: PartitionResource): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    partition.state = "released"
    core.partitions.delete(partition)
    core.shares.get(partition.deviceIndex)?.giveBack(partition.share)
    const status = core.backend.partitions.destroy(partition)
    return status === success ? Effect.void : core.fail(releaseOperation, status, partition)
  })
