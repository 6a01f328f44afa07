/**
 * Which bytes belong together: by address, so that buffers over the same memory share what is known about it.
 */
import type { MemoryRef } from "../CudaRuntime.ts"
import { GrowableMemoryResource } from "../shared/resources.ts"
import type { Where } from "./Checks.ts"
import { Pieces } from "./Pieces.ts"

/** A range whose owner has released it while other buffers over it remain. */
export interface Released {
  readonly from: number
  readonly to: number
  readonly where: Where | undefined
}

/** A range of addresses, and its users. */
export class Region<User extends object> {
  from: number
  to: number
  readonly pieces: Pieces<User>
  /** The number of buffers over it. */
  holders = 0
  readonly released: Array<Released> = []
  /** The region that it has become part of. */
  into: Region<User> | undefined
  constructor(from: number, to: number, isNeeded: (user: User) => boolean) {
    this.from = from
    this.to = to
    this.pieces = new Pieces(isNeeded)
  }
}

/** The regions of one kind of memory: of the host, or of all devices. */
class Space<User extends object> {
  /** In order, without overlaps. */
  readonly regions: Array<Region<User>> = []

  /** The index of the first region that ends after an address. */
  #find(address: number): number {
    const { regions } = this
    let low = 0
    let high = regions.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (regions[middle]!.to <= address) low = middle + 1
      else high = middle
    }
    return low
  }

  /** The region of a range, which becomes one with those that it overlaps. */
  add(from: number, to: number, isNeeded: (user: User) => boolean): Region<User> {
    const { regions } = this
    const start = this.#find(from)
    const first = regions[start]
    if (first !== undefined && first.from <= from && first.to >= to) return first
    let end = start
    while (end < regions.length && regions[end]!.from < to) end++
    const region = new Region<User>(from, to, isNeeded)
    for (const old of regions.slice(start, end)) absorb(region, old)
    regions.splice(start, end - start, region)
    return region
  }

  delete(region: Region<User>): void {
    const at = this.#find(region.from)
    if (this.regions[at] === region) this.regions.splice(at, 1)
  }
}

const absorb = <User extends object>(region: Region<User>, old: Region<User>): void => {
  region.from = Math.min(region.from, old.from)
  region.to = Math.max(region.to, old.to)
  region.holders += old.holders
  region.released.push(...old.released)
  region.pieces.take(old.pieces)
  old.into = region
}

/** The end of a buffer. Memory that grows stays in its addresses. */
const endOf = (memory: MemoryRef): number =>
  memory.address + (memory instanceof GrowableMemoryResource ? memory.reservedBytes : memory.byteLength)

/** Where a buffer is. */
class Place<User extends object> {
  readonly regions: Regions<User>
  readonly region: Region<User>
  constructor(regions: Regions<User>, region: Region<User>) {
    this.regions = regions
    this.region = region
  }
}

/** Memory with a field for what is known of it. */
export type CheckedMemory = MemoryRef & { checked?: unknown }

export class Regions<User extends object> {
  readonly #spaces = { host: new Space<User>(), device: new Space<User>() }
  readonly #known = new WeakMap<MemoryRef, Region<User>>()
  readonly #isNeeded: (user: User) => boolean

  constructor(isNeeded: (user: User) => boolean) {
    this.#isNeeded = isNeeded
  }

  /** The number of regions. */
  get size(): number {
    return this.#spaces.host.regions.length + this.#spaces.device.regions.length
  }

  /** The number of pieces in all regions. */
  get pieces(): number {
    const { device, host } = this.#spaces
    return [...device.regions, ...host.regions].reduce((sum, { pieces }) => sum + pieces.length, 0)
  }

  /** The region of a buffer. */
  of(memory: CheckedMemory): Region<User> {
    return this.known(memory) ?? this.#find(memory)
  }

  /** The region of a buffer, if it is kept with the memory. */
  known(memory: CheckedMemory | undefined): Region<User> | undefined {
    const checked = memory?.checked
    return checked instanceof Place && checked.regions === this && checked.region.into === undefined
      ? checked.region
      : undefined
  }

  /** Finds the region, and keeps it with the memory. Only one of several checkers around a runtime can. */
  #find(memory: CheckedMemory): Region<User> {
    let region = this.#known.get(memory) ?? this.#add(memory)
    while (region.into !== undefined) region = region.into
    this.#known.set(memory, region)
    if (memory.checked === undefined || memory.checked instanceof Place) memory.checked = new Place(this, region)
    return region
  }

  #add(memory: MemoryRef): Region<User> {
    const region = this.#spaces[memory.kind].add(memory.address, endOf(memory), this.#isNeeded)
    region.holders++
    this.#known.set(memory, region)
    return region
  }

  /** Begins with memory that was just allocated: nobody has used it, whatever was at its addresses before. */
  allocate(memory: MemoryRef): void {
    const { address } = memory
    const end = endOf(memory)
    const region = this.#add(memory)
    const { released } = region
    if (region.holders === 1) return
    region.pieces.clear(address, end)
    const rest = released.filter(({ from, to }) => to <= address || from >= end)
    released.splice(0, released.length, ...rest)
  }

  /** Forgets the users of bytes that are new. */
  renew(memory: MemoryRef, from: number, to: number): void {
    this.of(memory).pieces.clear(memory.address + from, memory.address + to)
  }

  /** Ends a buffer. If it owned the memory and others remain, they may not be used any longer. */
  release(memory: CheckedMemory, isOwner: boolean, where: Where | undefined): void {
    if (!this.#known.has(memory)) return
    const region = this.of(memory)
    this.#known.delete(memory)
    memory.checked = undefined
    region.holders--
    if (region.holders === 0) return this.#spaces[memory.kind].delete(region)
    if (isOwner) region.released.push({ from: memory.address, to: endOf(memory), where })
  }
}
