/**
 * The backend on simulated devices, composed of one part per capability.
 */
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { statuses, success } from "../../cuda/status.ts"
import type { Backend, Explanation } from "../shared/Backend.ts"
import type { AnyMemoryResource, StreamResource } from "../shared/resources.ts"
import { neverFinishes } from "../shared/waits.ts"
import { SimulatedMarkers } from "./accesses.ts"
import { AddressSpace } from "./addressSpace.ts"
import { SimulatedCaptures } from "./captures.ts"
import { SimulatedCopies } from "./copies.ts"
import { SimulatedDevices } from "./devices.ts"
import { SimulatedDriver } from "./Driver.ts"
import { SimulatedEvents } from "./events.ts"
import { SimulatedGraphs } from "./graphs.ts"
import { SimulatedGrowable } from "./growable.ts"
import { SimulatedInterprocess } from "./interprocess.ts"
import { SimulatedKernels } from "./kernels.ts"
import { SimulatedLibraries } from "./libraries.ts"
import { SimulatedManaged } from "./managed.ts"
import { SimulatedMemory } from "./memory.ts"
import { SimulatedModules } from "./modules.ts"
import type { ResolvedOptions } from "./options.ts"
import { SimulatedPartitions } from "./partitions.ts"
import { SimulatedPeers } from "./peers.ts"
import { SimulatedPinned } from "./pinned.ts"
import { SimulatedPools } from "./pools.ts"
import { SimulatedProfiler } from "./profiler.ts"
import { SimulatedPrograms } from "./programs.ts"
import { memoryPart, streamPart } from "./resources.ts"
import { SimulatedStreams } from "./streams.ts"

/** Work enqueued through `SimulatedControl`. The duration is in nanoseconds. */
export interface EnqueuedWork {
  readonly duration: number
  readonly act?: () => void
  /** The status of the fault that it ends in. */
  readonly fault?: number
}

export class SimulatedBackend implements Backend {
  readonly kind = "simulated"
  readonly driverVersion: number
  readonly driver: SimulatedDriver
  readonly devices: SimulatedDevices
  readonly streams: SimulatedStreams
  readonly events: SimulatedEvents
  readonly markers: SimulatedMarkers
  readonly memory: SimulatedMemory
  readonly pinned: SimulatedPinned
  readonly managed: SimulatedManaged
  readonly growable: SimulatedGrowable
  readonly copies: SimulatedCopies
  readonly pools: SimulatedPools
  readonly peers: SimulatedPeers
  readonly interprocess: SimulatedInterprocess
  readonly modules: SimulatedModules
  readonly kernels: SimulatedKernels
  readonly graphs: SimulatedGraphs
  readonly captures: SimulatedCaptures
  readonly libraries = new SimulatedLibraries()
  readonly partitions: SimulatedPartitions
  readonly profiler: SimulatedProfiler
  readonly programs = new SimulatedPrograms()

  constructor(options: ResolvedOptions, clock: Clock.Clock, context: Context.Context<never>) {
    const driver = new SimulatedDriver(this, options, clock, context)
    const addresses = new AddressSpace()
    this.driverVersion = options.driverVersion
    this.driver = driver
    this.devices = new SimulatedDevices(driver)
    this.streams = new SimulatedStreams(driver)
    this.events = new SimulatedEvents(driver)
    this.markers = new SimulatedMarkers(driver)
    this.pools = new SimulatedPools(driver)
    this.peers = new SimulatedPeers(driver)
    this.memory = new SimulatedMemory(driver, addresses, this.pools)
    this.interprocess = this.memory.interprocess = new SimulatedInterprocess(driver, addresses)
    this.pinned = new SimulatedPinned(driver, addresses)
    this.managed = new SimulatedManaged(driver, addresses)
    this.growable = new SimulatedGrowable(driver, addresses)
    this.copies = new SimulatedCopies(driver)
    this.modules = new SimulatedModules(driver, addresses)
    this.kernels = new SimulatedKernels(driver, addresses, this.modules)
    this.captures = new SimulatedCaptures(driver)
    this.partitions = new SimulatedPartitions(driver)
    this.profiler = new SimulatedProfiler(driver)
    this.graphs = new SimulatedGraphs(driver, this.copies, this.kernels, this.captures)
  }

  get call(): string {
    return this.driver.call
  }

  describeStatus(status: number): { readonly name: string; readonly description: string } | undefined {
    return status === neverFinishes ? { name: "NeverFinishes", description: this.driver.because } : undefined
  }

  explain(status: number): Explanation | undefined {
    return this.driver.explain(status)
  }

  settle(): void {
    this.driver.settle()
  }

  /** Enqueues work that is not a kernel. */
  launch(stream: StreamResource, work: EnqueuedWork): number {
    const part = streamPart(stream)
    const status = this.driver.begin("cuLaunchKernelEx", part.device)
    if (status !== success) return status
    const { act } = work
    const run = act && (() => this.driver.runCode(`Work on ${stream}`, act))
    this.driver.model.work(part, run === undefined ? work : { ...work, act: run })
    return success
  }

  /** Destroys the context of a device, like a fault. Does nothing for a device that does not exist. */
  endContext(deviceIndex: number, status: number): void {
    if (this.devices.all[deviceIndex] !== undefined) this.driver.lose(deviceIndex, status)
  }

  /** The contents of a device buffer; undefined if the process has no memory for them. */
  bytesOf(memory: AnyMemoryResource): Uint8Array<ArrayBuffer> | undefined {
    this.driver.now()
    this.driver.model.world.catchUp()
    try {
      return memoryPart(memory).touch()
    } catch {
      return undefined
    }
  }

  readonly close: Effect.Effect<void> = Effect.sync(() => {
    this.driver.pacer.stop()
    this.pools.close()
    this.driver.model.close(statuses.Deinitialized.code)
    this.events.close()
  })
}
