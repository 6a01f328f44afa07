/**
 * The share of the event loop that the data of simulated devices may take: a budget for each turn.
 */

/** Decides how long a world may stay with the data that is due. */
export interface Turns {
  /** True if the rest must wait for the next turn. */
  readonly isOver: boolean
  /** Called at the beginning of a turn after one in which something was charged. */
  onNext: () => void
  /** Runs something that takes time of the turn. */
  readonly charge: <A>(run: () => A) => A
  /** Makes sure that the next turn begins, because something waits for it. */
  readonly hold: () => void
}

/** Milliseconds of a turn. The last piece of a turn, or a kernel function, may exceed it. */
const budget = 2

/**
 * The turns of Node.js's event loop. A clock that stands still while data moves, such as `TestClock`, is charged nothing, because
 * nothing else can happen before the data is there.
 */
export class LoopTurns implements Turns {
  onNext: () => void = () => {}
  readonly #clock: () => number
  #spent = 0
  #next: NodeJS.Immediate | undefined

  constructor(clock: () => number) {
    this.#clock = clock
  }

  get isOver(): boolean {
    return this.#spent >= budget
  }

  charge<A>(run: () => A): A {
    const clock = this.#clock()
    const start = performance.now()
    try {
      return run()
    } finally {
      if (this.#clock() !== clock) this.#spend(performance.now() - start)
    }
  }

  /** Keeps the process alive until then. */
  hold(): void {
    this.#next?.ref()
  }

  #spend(millis: number): void {
    this.#spent += millis
    this.#next ??= setImmediate(this.#begin).unref()
  }

  readonly #begin = (): void => {
    this.#next = undefined
    this.#spent = 0
    this.onNext()
  }
}
