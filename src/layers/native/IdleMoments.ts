/**
 * Moments at which all devices are idle, for calls of the driver that would block the thread until then.
 */

/** Delay before the next check for idle devices, in milliseconds. */
const retryDelay = 10

export class IdleMoments {
  readonly #isIdle: () => boolean
  readonly #run: () => void
  readonly #isLeft: () => boolean
  #timer: NodeJS.Timeout | undefined
  #isStopped = false

  /** `run` makes the calls, and `isLeft` says whether there are any to make. */
  constructor(isIdle: () => boolean, run: () => void, isLeft: () => boolean) {
    this.#isIdle = isIdle
    this.#run = run
    this.#isLeft = isLeft
  }

  /** Runs at the next idle moment, and not in this turn of the event loop. */
  request(): void {
    if (this.#timer === undefined && !this.#isStopped) this.#timer = setTimeout(this.#check, 0).unref()
  }

  /** Runs now, unless that would block. */
  runIfIdle(): void {
    if (this.#isLeft() && this.#isIdle()) this.#run()
  }

  readonly #check = (): void => {
    this.#timer = undefined
    this.runIfIdle()
    if (this.#isLeft()) this.#timer = setTimeout(this.#check, retryDelay).unref()
  }

  /** Stops checking. Called before the devices are closed, one after the other. */
  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
  }
}
