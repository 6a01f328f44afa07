/**
 * The backend on the driver API, in each device's primary context. Composed of one part per capability, and closes them in order.
 */
import * as Effect from "effect/Effect"
import type { CUdevice } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { success } from "../../cuda/status.ts"
import type { DeviceProperties } from "../CudaRuntime.ts"
import type { Backend } from "../shared/Backend.ts"
import type { ProgramBackend } from "../shared/programs.ts"
import { watchAll } from "../shared/waits.ts"
import { NativeMarkers } from "./accesses.ts"
import { NativeCaptures } from "./captures.ts"
import { Completion } from "./Completion.ts"
import type { WaitPolicy } from "./Completion.ts"
import { NativeCopies } from "./copies.ts"
import type { NativeDevice, Warn } from "./Device.ts"
import { NativeDevices } from "./devices.ts"
import { Driver } from "./Driver.ts"
import { NativeEvents } from "./events.ts"
import { NativeGraphs } from "./graphs.ts"
import { NativeGrowable } from "./growable.ts"
import { NativeInterprocess } from "./interprocess.ts"
import { NativeKernels } from "./kernels.ts"
import { NativeLibraries } from "./libraries.ts"
import { NativeManaged } from "./managed.ts"
import { ManagedMemory } from "./ManagedMemory.ts"
import { NativeMemory } from "./memory.ts"
import { ModuleLoader } from "./ModuleLoader.ts"
import { NativeModules } from "./modules.ts"
import { NativePartitions } from "./partitions.ts"
import { NativePeers } from "./peers.ts"
import { NativePinned } from "./pinned.ts"
import { PinnedMemory } from "./PinnedMemory.ts"
import type { PinnedPolicy } from "./PinnedMemory.ts"
import { NativePools } from "./pools.ts"
import { NativeProfiler } from "./profiler.ts"
import { Releases } from "./Releases.ts"
import { NativeStreams } from "./streams.ts"
import type { Waker } from "./Waker.ts"

/** The resolved options of the native runtime. */
export interface NativePolicy {
  readonly wait: WaitPolicy
  readonly pinned: PinnedPolicy
  /** Whether every device gets access to the memory of all others, where the driver offers it. */
  readonly connectsAll: boolean
}

/** The dependencies of the native backend. */
export interface NativeSetup {
  readonly library: DriverLibrary
  readonly driverVersion: number
  readonly devices: ReadonlyArray<{ readonly handle: CUdevice; readonly properties: DeviceProperties }>
  readonly policy: NativePolicy
  readonly waker: Waker | undefined
  readonly programs: ProgramBackend
  readonly warn: Warn
}

export class NativeBackend implements Backend {
  readonly kind = "native"
  readonly driverVersion: number
  readonly devices: NativeDevices
  readonly streams: NativeStreams
  readonly events: NativeEvents
  readonly markers: NativeMarkers
  readonly memory: NativeMemory
  readonly pinned: NativePinned
  readonly managed: NativeManaged
  readonly growable: NativeGrowable
  readonly copies: NativeCopies
  readonly pools: NativePools
  readonly peers: NativePeers
  readonly interprocess: NativeInterprocess
  readonly modules: NativeModules
  readonly kernels: NativeKernels
  readonly graphs: NativeGraphs
  readonly captures: NativeCaptures
  readonly libraries = new NativeLibraries()
  readonly partitions: NativePartitions
  readonly profiler: NativeProfiler
  readonly programs: ProgramBackend
  readonly #driver: Driver
  readonly #completion: Completion
  readonly #releases: Releases
  readonly #pinnedMemory: PinnedMemory
  readonly #managedMemory: ManagedMemory
  readonly #loader: ModuleLoader

  constructor({ devices, driverVersion, library, policy, programs, waker, warn }: NativeSetup) {
    this.driverVersion = driverVersion
    this.programs = programs
    const driver = this.#driver = new Driver(this, library, devices.length, warn)
    const completion = this.#completion = new Completion(
      library.calls,
      policy.wait,
      waker,
      (index) => driver.device(index),
      (call, status) => void driver.answer(call, status),
      driver.warn
    )
    this.streams = new NativeStreams(driver, completion)
    this.events = new NativeEvents(driver, completion)
    this.markers = new NativeMarkers(driver, completion)
    const releases = this.#releases = new Releases(this.streams)
    this.memory = new NativeMemory(driver, this.streams, releases)
    this.devices = new NativeDevices(devices, driver, this.streams, this.memory)
    const areIdle = () => this.devices.areIdle()
    this.#managedMemory = this.memory.managed = new ManagedMemory(driver, areIdle)
    this.interprocess = this.memory.interprocess = new NativeInterprocess(driver, this.memory, areIdle)
    this.managed = new NativeManaged(driver, this.devices, this.#managedMemory)
    this.growable = this.memory.growable = new NativeGrowable(driver, this.devices)
    this.#pinnedMemory = new PinnedMemory(
      library,
      policy.pinned,
      (name, call) => driver.inFirstContext(name, call),
      areIdle,
      driver.warn
    )
    this.pinned = new NativePinned(driver, this.#pinnedMemory, releases)
    this.pools = new NativePools(driver, this.memory, () => {
      this.#managedMemory.freeIfIdle()
      this.interprocess.freeIfIdle()
    })
    this.peers = new NativePeers(driver, this.devices, this.pools, policy.connectsAll)
    this.copies = new NativeCopies(driver, this.peers)
    this.memory.pools = this.pools
    this.#loader = new ModuleLoader(library, this, areIdle, driver.warn)
    this.modules = new NativeModules(driver, this.#loader)
    this.kernels = new NativeKernels(driver, this.devices)
    this.captures = new NativeCaptures(driver)
    this.partitions = new NativePartitions(driver, this.devices)
    this.profiler = new NativeProfiler(driver)
    this.graphs = new NativeGraphs(driver, this.events, this.peers)
  }

  get call(): string {
    return this.#driver.call
  }

  describeStatus(status: number): { readonly name: string; readonly description: string } | undefined {
    return this.#driver.describe(status)
  }

  noteLost(): void {
    this.#driver.isLost = true
  }

  settle(): void {
    this.#completion.settle()
  }

  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    const devices = this.#driver.opened.filter((device) => device !== undefined)
    const released = watchAll(devices.map(({ index }) => (onDone) => this.memory.watchReleases(index, onDone)))
    return Effect.callback<void>((resume) => {
      released(() => resume(Effect.void), {})
    }).pipe(
      Effect.andThen(Effect.suspend(() => {
        this.#releases.close()
        return this.#pinnedMemory.close
      })),
      Effect.andThen(this.#loader.close),
      Effect.andThen(Effect.sync(() => {
        this.#completion.close()
        this.captures.close()
        this.partitions.close()
        this.#managedMemory.stop()
        this.interprocess.stop()
      })),
      Effect.andThen(Effect.forEach(devices, (device) => this.#closeDevice(device), { discard: true }))
    )
  })

  #closeDevice(device: NativeDevice): Effect.Effect<void> {
    return Effect.callback((resume) => {
      this.interprocess.closeDevice(device.index)
      const { keepsPool } = this.pools.closeDevice(device)
      const entered = device.enter()
      // Even if entering failed, because handles carry their context.
      device.tearDown(this.#driver.warn, keepsPool)
      if (entered === success) device.leave()
      this.pools.close(device.index)
      // The context must live as long as JavaScript has views of managed memory.
      const isSeen = this.#managedMemory.close(device.index, () => this.devices.close(device, () => {}))
      if (isSeen) return resume(Effect.void)
      this.devices.close(device, () => resume(Effect.void))
    })
  }
}
